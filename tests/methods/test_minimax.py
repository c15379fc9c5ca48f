"""Tests of minimax: its rows, its settings and its work; through Ray with one worker and with two."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save

from tests.tiny_models import DIT_NAMES
from vlcp_ray import images
from vlcp_ray.config import Job, load_job
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.synthetic_sets import SpreadToSets
from vlcp_ray.engine.writing import TARGET
from vlcp_ray.methods.minimax import GUIDED_CHANNELS, METHOD, Minimax, Sample, image_flops
from vlcp_ray.pipeline import check_inputs, graph, run
from vlcp_ray.scale import FinetunePool, Pool, Scale
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import STAGES, finetune, select
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.store.artifact import Artifact, Store

JOB = "jobs/digits-compare.toml"
FEW = ['compare.methods=["minimax"]', "compare.minimax.num_inference_steps=4"]


def job_of(model: str, *overrides: str) -> Job:
    return load_job(JOB, [*FEW, f"compare.minimax.model={model}", *overrides])


def rows(numbers: list[tuple[int, int, int]]) -> pa.Table:
    """Rows of images: (label, number, group)."""
    columns: dict[str, Any] = {
        "image_id": [f"minimax-{label:04d}-{number:04d}" for label, number, _ in numbers],
        "label": pa.array([label for label, _, _ in numbers], pa.int32()),
        "class_name": [DIT_NAMES[label] for label, _, _ in numbers],
        "number": pa.array([number for _, number, _ in numbers], pa.int32()),
        "seed": pa.array([7] * len(numbers), pa.int64()),
        "model": ["abc"] * len(numbers),
        "group": pa.array([group for _, _, group in numbers], pa.int32()),
        "source": [DIT_NAMES[label] for label, _, _ in numbers],
        "prototype_id": [""] * len(numbers),
    }
    return pa.table(columns)


@pytest.fixture
def trained(tmp_path: Path) -> Artifact:
    """Weights of two groups of classes, which differ."""
    artifact = Store.at(str(tmp_path)).artifact(graph(load_job(JOB))[0])
    for group in (0, 1):
        weights = {"proj_out_1.bias": torch.full((32,), float(group))}
        artifact.write_bytes(f"classes/{group:04d}/model/trained.safetensors", save(weights))
    return artifact


def pixels(table: pa.Table) -> dict[str, Any]:
    pairs = zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True)
    return {image_id: np.asarray(images.decode(data)).astype(int) for image_id, data in pairs}


def test_images_do_not_depend_on_batches_order_or_other_rows(tiny_dit: str, trained: Artifact) -> None:
    job, wanted = job_of(tiny_dit), [(0, 0, 0), (1, 0, 1), (0, 1, 0), (2, 0, 1), (1, 1, 1)]
    made = pixels(Sample(job, {"abc": trained}, 8)(rows(wanted)))
    again = Sample(job, {"abc": trained}, 2)
    separate: dict[str, Any] = {}
    for row in reversed(wanted):
        separate |= pixels(again(rows([row])))
    assert made.keys() == separate.keys()
    assert all(np.abs(made[name] - separate[name]).max() <= 1 for name in made)
    assert all(image.shape == (32, 32, 3) for image in made.values())
    assert not np.array_equal(made["minimax-0000-0000"], made["minimax-0000-0001"])


def test_images_are_those_of_the_weights_of_their_group(tiny_dit: str, trained: Artifact) -> None:
    sample = Sample(job_of(tiny_dit), {"abc": trained}, 4)
    first, second = (pixels(sample(rows([(1, 0, group)])))["minimax-0001-0000"] for group in (0, 1))
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match=r"classes/0002/model/trained.safetensors is missing"):
        sample(rows([(1, 0, 2)]))


def test_an_image_of_several_sets_is_made_once(tiny_dit: str, trained: Artifact) -> None:
    table = rows([(0, 0, 0), (0, 1, 0)]).append_column("targets", pa.array([["small", "large"], ["large"]]))
    arguments = {"job": job_of(tiny_dit), "models": {"abc": trained}, "batch_size": 4}
    made = SpreadToSets(METHOD.code, **arguments)(table)
    pairs = list(zip(made[TARGET].to_pylist(), made["image_id"].to_pylist(), strict=True))
    assert pairs == [
        ("small", "minimax-0000-0000"),
        ("large", "minimax-0000-0000"),
        ("large", "minimax-0000-0001"),
    ]
    assert made["image"][0] == made["image"][1]


def fingerprints(*overrides: str) -> dict[tuple[Any, ...], str]:
    methods = 'compare.methods=["vlcp","minimax"]'
    return {(s.stage, *s.key.values()): s.fingerprint for s in graph(load_job(JOB, [methods, *overrides]))[:-1]}


def test_settings_of_training_change_model_and_sets_those_of_sampling_the_sets_only() -> None:
    plain = fingerprints()
    for setting, stages in (
        ("epochs=9", {"finetune", "select", "evaluate"}),
        ("guidance_scale=3", {"select", "evaluate"}),
    ):
        other = fingerprints(f"compare.minimax.{setting}")
        changed = {key for key in plain if plain[key] != other[key]}
        assert {key[0] for key in changed} == stages
        assert all("minimax" in key for key in changed)


def test_default_settings_are_the_released_ones() -> None:
    settings = Minimax()
    assert (settings.epochs, settings.batch_size, settings.learning_rate, settings.ema_decay) == (8, 8, 1e-3, 0.9999)
    assert (settings.representativeness, settings.diversity, settings.memory_size) == (0.002, 0.008, 64)
    assert (settings.num_inference_steps, settings.guidance_scale, GUIDED_CHANNELS) == (50, 4.0, 3)
    assert settings.classes_per_model == 10


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), r"is no DiT .*lacks model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("{}"), r"has no id2label with a name for each of its"),
        (lambda folder: rewrite(folder, '"out_channels": 8', '"out_channels": 4'), r"predicts no variance"),
        (lambda folder: rewrite(folder, "DiTTransformer2DModel", "UNet2DModel"), r"is a UNet2DModel; give a DiT"),
    ],
)
def test_folders_that_are_no_dit_are_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    from tests.tiny_models import build_dit

    folder = build_dit(tmp_path / "dit")
    check_inputs(job_of(str(folder)))
    spoil(folder)
    with pytest.raises(ConfigError, match=rf"^compare.minimax.model: .*{message}"):
        check_inputs(job_of(str(folder)))


def rewrite(folder: Path, old: str, new: str) -> None:
    file = folder / "transformer" / "config.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_options_without_the_method_are_refused() -> None:
    with pytest.raises(ConfigError, match="minimax is for minimax only"):
        load_job("jobs/digits.toml", ["compare.minimax.epochs=3"])


def test_loads_are_the_trainings_of_the_seeds_and_the_images_of_the_largest_sets() -> None:
    job = job_of("demo/dit", "ipc=[1,16]", "compare.minimax.classes_per_model=4")
    inputs = CostInputs.for_job(job, Expect(train=1000, val=100, classes=10, gib=1))
    steps = graph(job)
    encode, train = finetune.STAGE.loads(inputs, [step for step in steps if step.stage == "finetune"])
    passes = 2 * inputs.models.denoise_dit(4)
    scale = inputs.scale.finetune.gradient_checkpointing
    assert encode.amount == 1000 * inputs.models.encode_for_dit(4)
    assert (train.work, train.images) == (finetune.TRAIN_DIT, 3 * 8 * 1000)
    assert train.amount == 3 * 8 * 1000 * (passes + scale * inputs.models.denoise_dit(4))
    (sample,) = METHOD.loads(inputs, [step for step in steps if step.stage == "select"])
    each = image_flops(job.compare.minimax, inputs.models, 4)
    assert (sample.work, sample.images, sample.amount) == (select.SAMPLE, 3 * 17 * 10, 3 * 16 * 10 * each)
    assert each == 8 * inputs.models.denoise_dit(4) + inputs.models.decode_dit(4)


TWO_SIZES = ("seeds=[0]", "ipc=[1,2]", "compare.minimax.classes_per_model=3")


def select_with(root: Path, model: str, workers: int) -> dict[int, Artifact]:
    """Make both sets of four classes in two groups by so many workers, from weights that stand for a training."""
    job, pool = job_of(model, *TWO_SIZES), Pool(num_workers=workers, batch_size=2 * workers)
    context = Context(job, Scale(generate=pool), Store.at(str(root)))
    steps = graph(job)
    for step in steps:
        artifact = context.artifact(step)
        if step.stage == "finetune":
            for group in (0, 1):
                weights = {"proj_out_1.bias": torch.full((32,), 0.1 * group)}
                artifact.write_bytes(f"classes/{group:04d}/model/trained.safetensors", save(weights))
        if step.stage in ("ingest", "finetune"):
            names = {"class_names": list(DIT_NAMES[:4]), "train": [5, 5, 5, 5]}
            context.complete(step, rows_in=20, rows=20, seconds=1.0, **names)
    own = [step for step in steps if step.stage == "select"]
    STAGES["select"].run(context, own)
    return {step.key["ipc"]: context.artifact(step) for step in own}


@pytest.mark.faults  # a minute on idle cores; the other methods are compared in stages/select/test_run.py
@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("default")
def test_sets_are_the_same_for_one_worker_and_two_and_where_a_part_is_resumed(tmp_path: Path, tiny_dit: str) -> None:
    artifacts = [select_with(tmp_path / str(workers), tiny_dit, workers) for workers in (1, 2)]
    one, two = ({ipc: pixels(a.table("synthetic", SYNTHETIC)) for ipc, a in made.items()} for made in artifacts)
    assert {ipc: len(made) for ipc, made in one.items()} == {1: 4, 2: 8}
    for ipc in (1, 2):
        assert one[ipc].keys() == two[ipc].keys()
        assert all(np.abs(one[ipc][name] - two[ipc][name]).max() <= 1 for name in one[ipc])
    assert all(np.array_equal(image, one[2][name]) for name, image in one[1].items())
    folder = Path(artifacts[0][2].path)
    (folder / "manifest.json").unlink()
    sorted((folder / "synthetic").iterdir())[0].unlink()
    resumed = pixels(select_with(tmp_path / "1", tiny_dit, 1)[2].table("synthetic", SYNTHETIC))
    assert resumed.keys() == one[2].keys()
    assert all(np.abs(resumed[name] - image).max() <= 1 for name, image in one[2].items())


SMALL = ("seeds=[0]", "ipc=[1]", "ingest.max_per_class=4", "ingest.max_val_per_class=1", "compare.minimax.epochs=2")
SMALL += ("compare.minimax.batch_size=8", "compare.minimax.classes_per_model=6")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("default")
def test_run_trains_a_model_for_each_group_of_classes_and_samples_them(tmp_path: Path) -> None:
    job, store = job_of("demo/dit", *SMALL), Store.at(str(tmp_path))
    ranks = FinetunePool(num_workers=1, batch_size=8, gradient_checkpointing=False)
    steps = {step.stage: step for step in run(job, store, "select", Scale(finetune=ranks))}
    made = store.artifact(steps["select"]).table("synthetic", SYNTHETIC)
    assert sorted(made["label"].to_pylist()) == list(range(10))
    manifest = store.artifact(steps["finetune"]).manifest() or {}
    assert [name for name in manifest["files"] if name.endswith("safetensors")] == [
        f"classes/{group:04d}/model/trained.safetensors" for group in (0, 1)
    ]
    assert (manifest["rows"], manifest["images"], manifest["steps"]) == (40, 80, 6 + 4)
    assert [len(losses) for losses in manifest["losses"]] == [2, 2]
