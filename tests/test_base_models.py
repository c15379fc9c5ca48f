"""Tests of the digits job with base models of other families: one line of the job is changed."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from tests.faults.runs import is_under_way
from tests.small_job import JOB, overrides, write_inputs
from tests.tiny_models import build_stable_diffusion
from vlcp_ray.config import Job, load_job
from vlcp_ray.images import decode
from vlcp_ray.models.lora import LAYERS
from vlcp_ray.models.pretrained import folder
from vlcp_ray.pipeline import check_inputs, graph, run
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import SYNTHETIC, tensors
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.finetune import MODEL
from vlcp_ray.stages.prototype import prototypes_schema
from vlcp_ray.store.artifact import Store

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("base_models"))


def of(model: str, inputs: Path, methods: str = '["vlcp", "base-text"]') -> Job:
    """The small digits job with another base model, and one image of each class."""
    return load_job(JOB, [*overrides(inputs), f"base_model={model}", f"compare.methods={methods}", "ipc=[1]"])


def made(job: Job, store: Store, table: str, schema: pa.Schema) -> pa.Table:
    (step, *_) = [step for step in graph(job) if step.stage == {"synthetic": "generate"}.get(table, "prototype")]
    rows = store.artifact(step).table(table, schema)
    return rows.sort_by(rows.column_names[0])


def run_with(workers: int, job: Job, root: Path, to: str) -> Store:
    """Run the job to a stage with so many workers in every pool."""
    pool, store = Pool(num_workers=workers, num_cpus=1 / workers, batch_size=25), Store.at(str(root / str(workers)))
    names = ("ingest", "encode", "finetune", "prototype", "generate", "evaluate")
    list(run(job, store, to, Scale(**dict.fromkeys(names, pool))))
    return store


def test_digits_run_with_every_family_to_the_report(
    ray_session: None, completed_run: tuple[Path, Path], tiny_family: str, tmp_path: Path
) -> None:
    root, inputs = completed_run
    shutil.copytree(root, tmp_path / "1")  # the images, which every base model shares
    job = of(tiny_family, inputs, '["vlcp"]')
    store = run_with(1, job, tmp_path, "report")
    images = made(job, store, "synthetic", SYNTHETIC)["image"].to_pylist()
    assert [decode(image).size for image in images] == [(32, 32)] * 4
    assert len(list(run(job, store, "report", None))) == len(graph(job))  # complete: nothing is started


@pytest.mark.faults  # two whole runs of each family
def test_two_workers_give_what_one_gives(ray_session: None, tiny_family: str, inputs: Path, tmp_path: Path) -> None:
    job = of(tiny_family, inputs)
    latents, pixels = [], []
    for workers in (1, 2):
        store = run_with(workers, job, tmp_path, "generate")
        latents.append(tensors(made(job, store, "prototypes", prototypes_schema((4, 4, 4)))["latent"]))
        images = made(job, store, "synthetic", SYNTHETIC)["image"].to_pylist()
        pixels.append(np.stack([np.asarray(decode(image)).astype(int) for image in images]))
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-3)
    assert pixels[0].shape == (4, 32, 32, 3)
    assert np.abs(pixels[0] - pixels[1]).max() <= 3  # two ranks add up gradients in another order


#: Two ranks in every run, whose sums are in the same order; parts small enough that a run can be killed between two.
SCALE = """
rows_per_block = 16
[encode]
batch_size = 8
[finetune]
num_workers = 2
gradient_checkpointing = false
checkpoint_minutes = 0
[generate]
num_workers = {workers}
batch_size = 2
"""


@pytest.mark.faults
def test_runs_that_are_killed_in_every_stage_of_the_model_resume_to_the_same_images(
    tiny_family: str, inputs: Path, tmp_path: Path
) -> None:
    changes = [*overrides(inputs), f"base_model={tiny_family}", 'compare.methods=["vlcp"]', "ipc=[8]"]
    changes += ["finetune.epochs=8", "finetune.batch_size=4", "generate.num_inference_steps=20"]
    sets = [part for change in changes for part in ("--set", change)]
    job, tables = load_job(JOB, changes), []

    def start(root: Path, workers: int) -> subprocess.Popen[bytes]:
        scale = tmp_path / f"{workers}.toml"
        scale.write_text(SCALE.format(workers=workers))
        command = [sys.executable, "-m", "vlcp_ray", "run", str(JOB), f"--root={root}", f"--scale={scale}"]
        return subprocess.Popen([*command, "--to", "generate", *sets])

    killed = tmp_path / "killed"
    for number, (stage, table) in enumerate({"pair": "pairs", "finetune": "progress", "generate": "synthetic"}.items()):
        run = start(killed, 1 + number % 2)
        while not is_under_way(killed, stage, table):
            assert run.poll() is None, f"the run ended before {stage} could be killed"
            time.sleep(0.01)
        run.kill()
        run.wait()
        time.sleep(3)  # the workers end after their driver
    for root in (killed, tmp_path / "undisturbed"):
        assert start(root, 1).wait() == 0
        tables.append(made(job, Store.at(str(root)), "synthetic", SYNTHETIC))
    assert len(tables[0]) == 32
    assert tables[0].equals(tables[1])


@pytest.mark.faults  # three runs to the model
def test_the_job_with_lora_and_min_snr_gives_a_whole_model_and_the_same_with_two_ranks(
    ray_session: None, inputs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    changes = [*overrides(inputs), 'compare.methods=["vlcp"]', "ipc=[1]", "finetune.batch_size=8"]
    job, trained = load_job(JOB.with_name("digits-lora.toml"), changes), []
    assert (job.finetune.lora_rank, job.finetune.snr_gamma) == (16, 5.0)
    (tuned,) = [step for step in graph(job) if step.stage == "finetune"]
    base = read_unet(Path(folder(job.base_model)))
    for count in (1, 2):
        root, pool = tmp_path / str(count), Pool(num_workers=count, num_cpus=1 / count, batch_size=25)
        if count == 2:  # the same PAIRS
            shutil.copytree(tmp_path / "1", root)
            shutil.rmtree(root / tuned.folder)
        list(run(job, Store.at(str(root)), "finetune", Scale(encode=pool, finetune=pool)))
        weights = read_unet(root / tuned.folder / MODEL)
        assert weights.keys() == base.keys()
        changed = {name for name in weights if not torch.equal(weights[name], base[name])}
        assert changed == {name for name in base if name.endswith(tuple(f"{layer}.weight" for layer in LAYERS))}
        trained.append(torch.cat([(weights[name] - base[name]).flatten() for name in sorted(changed)]))
    assert (trained[0] - trained[1]).norm() < 0.01 * trained[0].norm()  # gradients are added up in another order


def read_unet(model: Path) -> dict[str, torch.Tensor]:
    (file,) = model.glob("unet/*.safetensors")
    return {name: weight.float() for name, weight in load_file(file).items()}


def test_an_unknown_base_model_is_refused_with_the_families_before_anything_starts(
    tiny_stable_diffusion: str, inputs: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_stable_diffusion, tmp_path / "model"))
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(
        ConfigError,
        match=r"base_model: .* is a FluxPipeline; give a model of one of these families: "
        r"Stable Diffusion 1.x and 2.x \(StableDiffusionPipeline\), Stable Diffusion XL",
    ):
        check_inputs(of(str(model), inputs))
    (model / "model_index.json").write_text(json.dumps(index))
    for part, change, sentence in (
        ("unet", {"in_channels": 9}, "takes 9 channels"),
        ("vae", {"latent_channels": 16}, "has latents of 16 channels"),
        ("vae", {"latents_mean": [0.0] * 4}, "are shifted"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
    ):
        path = model / (part if "/" in part else f"{part}/config.json")
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(ConfigError, match=sentence):
            check_inputs(of(str(model), inputs))
        path.write_text(before)
    check_inputs(of(str(model), inputs))


def test_a_stable_diffusion_xl_without_its_second_text_encoder_is_refused(inputs: Path, tmp_path: Path) -> None:
    model = build_stable_diffusion(tmp_path / "xl", "xl")
    shutil.rmtree(model / "text_encoder_2")
    with pytest.raises(ConfigError, match=r"is no Stable Diffusion XL .* it lacks text_encoder_2/config.json"):
        check_inputs(of(str(model), inputs))
