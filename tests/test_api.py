"""Tests of the Python API on artifacts that are written by hand: what each function returns, and its errors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import vlcp_ray as vr
from tests.exports.conftest import IPC, NAMES, PIXELS, exporter
from vlcp_ray.config import Job, load_job
from vlcp_ray.pipeline import graph
from vlcp_ray.schemas import conform
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.store.artifact import Store


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job whose set of vlcp at 4 per class, prototypes and captions are under `runs`."""
    made = vr.load("digits", ipc=[1, IPC])
    exporter(made, tmp_path)
    store = Store.at(str(tmp_path / "runs"))
    for artifact in map(store.artifact, graph(made)):
        if artifact.files(recursive=True):
            counts = {"rows_in": 12, "rows": 12, "rejected": 0, "seconds": 1.0}
            artifact.complete(counts | (artifact.manifest() or {}))
    return made


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "runs")


def write_scores(job: Job, root: str) -> None:
    store = Store.at(root)
    row = dict.fromkeys(SCORES.names, 0) | {"protocol": "minimax", "network": "ConvNet-3", "curve": [], "confusion": []}
    row |= {"per_class": [0.0] * 6, "outcome": "", "augmented": True, "labels": "hard", "teacher": ""}
    for step in graph(job):
        if step.stage == "evaluate" and step.key.get("method") in ("vlcp", "random") and step.key.get("ipc") == IPC:
            top1 = {"vlcp": 0.75, "random": 0.5}[step.key["method"]]
            trials = [
                row | dict(step.key) | {"trial_id": f"{step.title} {n}", "repeat": n, "top1_last": top1 + n / 100}
                for n in range(2)
            ]
            store.artifact(step).write_table("scores/0.parquet", conform(pa.Table.from_pylist(trials), SCORES))


def test_import_loads_no_module_before_a_function_is_used() -> None:
    code = "import sys, vlcp_ray as vr; print([m for m in sys.modules if m.startswith('vlcp_ray.')], dir(vr)); vr.load"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] [")
    assert all(repr(name) in done.stdout for name in vr.__all__)
    with pytest.raises(AttributeError, match="module 'vlcp_ray' has no attribute 'runs'"):
        vr.runs  # noqa: B018


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_other_systems_get_one_sentence_from_the_command_and_the_api(system: str) -> None:
    code = f"import sys; sys.platform = {system!r}; from vlcp_ray.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "run", "digits"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "it runs on Linux only: on Windows install it in WSL" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    code = f"import sys; sys.platform = {system!r}; import vlcp_ray; vlcp_ray.load"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: vlcp_ray: it runs on Linux only")


def test_load_changes_settings_and_takes_a_sample() -> None:
    assert vr.load("digits") == load_job("digits")
    assert vr.load("digits", ipc=[2], generate={"strength": 0.5}) == load_job(
        "digits", ["ipc=[2]", "generate.strength=0.5"]
    )
    sample = vr.load("digits", sample=4, ipc=[1, 50])
    assert (sample.name, sample.ipc, sample.ingest.max_per_class) == ("digits-sample-4", (1, 2), 4)
    with pytest.raises(ConfigError, match="sample must be a number of images above 0, not -1"):
        vr.load("digits", sample=-1)
    with pytest.raises(ConfigError, match=r"digits: unknown setting 'ipcs'; did you mean 'ipc'\?"):
        vr.load("digits", ipcs=[1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"to": "reports"}, "to must be one of ingest, pair, .*, report, not 'reports'"),
        ({"track": "tensorboard"}, "track must be one of '', wandb, mlflow, not 'tensorboard'"),
        ({"scale": "azure"}, "azure: no such scale file"),
        ({"root": "nope://bucket"}, "nope://bucket"),
    ],
)
def test_run_with_wrong_arguments_raises_before_it_starts(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        vr.run(vr.load("digits"), **options)


def test_table_has_the_rows_of_all_sets_with_their_key_and_arrays(job: Job, root: str) -> None:
    prototypes = vr.table(job, "prototypes", root=root)
    assert list(prototypes.columns[:3]) == ["ipc", "seed", "prototype_id"]
    assert set(prototypes["ipc"]) == {IPC}
    assert prototypes["latent"][0].shape == (1, 1, 1)
    assert len(prototypes) == len(vr.table(job, "prototypes", root=root, ipc=IPC)) == len(NAMES) * IPC
    synthetic = vr.table(job, "synthetic", root=root, columns=["image_id", "seed"])
    assert list(synthetic.columns) == ["method", "ipc", "image_id", "seed"]  # the seed is that of the image
    assert sorted(set(synthetic["seed"])) == [0, 1, 2]
    assert vr.table(job, "pairs", root=root, columns=["caption"])["caption"][0].startswith("Ein Tier")
    assert len(vr.table(job, "rejected", root=root)) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "prototype"}, "name must be one of images, .*, not 'prototype'"),
        ({"name": "pairs", "columns": ["captions"]}, "columns must be one of image_id, .*, not 'captions'"),
        (
            {"name": "synthetic", "ipc": 7},
            "synthetic: the job makes none with {'ipc': 7}; it makes generate seed 0 ipc 1",
        ),
        ({"name": "prototypes", "ipc": 1}, "prototypes: not made yet under .*; run the job first, with the same root"),
    ],
)
def test_table_that_is_not_there_raises_one_sentence(job: Job, root: str, arguments: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        vr.table(job, root=root, **arguments)


def test_scores_are_the_rows_of_the_table_that_report_prints(job: Job, root: str) -> None:
    assert len(vr.scores(job, root=root)) == 0
    write_scores(job, root)
    scores = vr.scores(job, root=root).set_index("method")
    assert scores.loc["vlcp", "top1_last_mean"] == pytest.approx(0.755)
    assert (scores.loc["random", "n"], scores.loc["random", "difference"]) == (2, pytest.approx(25))
    with pytest.raises(ConfigError, match="scores: not made yet"):  # no evaluation is complete
        vr.table(job, "scores", root=root)


def test_distilled_is_a_torch_dataset_sorted_by_label(job: Job, root: str) -> None:
    train = vr.distilled(job, root=root, ipc=IPC)
    assert isinstance(train, Dataset)
    assert (len(train), train.classes) == (len(NAMES) * IPC, NAMES)
    arrays = vr.distilled(job, root=root, transform=lambda image: torch.from_numpy(np.array(image)))
    images, labels = next(iter(DataLoader(arrays, batch_size=len(arrays))))
    assert (images.numpy() == PIXELS.reshape(-1, 8, 8, 3)).all()
    assert labels.tolist() == [label for label in range(len(NAMES)) for _ in range(IPC)]


@pytest.mark.filterwarnings("default")
def test_distilled_for_datasets_has_images_class_names_and_soft_labels(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    teach = {"network": "ConvNet-3", "width": 8, "input_size": 8, "epochs": 40, "batch_size": 4}
    evaluate = {"protocols": ["minimax", "rded"], "input_size": 8}
    job = vr.load("digits", ipc=[1, IPC], teach=teach, evaluate=evaluate)
    exporter(job, tmp_path)
    made = vr.distilled(job, "datasets", root=str(tmp_path / "runs"))
    assert made.features["label"].names == NAMES
    assert (np.asarray(made[0]["image"]) == PIXELS[0, 0]).all()
    assert made["label"][-1] == len(NAMES) - 1
    assert np.allclose(np.sum(made["soft_label"][:], axis=1), 1)
    with pytest.raises(ConfigError, match='transform is for form="torch"'):
        vr.distilled(job, "datasets", transform=str)  # type: ignore[call-overload]


def test_distilled_that_is_not_there_raises_one_sentence(job: Job, root: str) -> None:
    with pytest.raises(ConfigError, match="the job makes no set vlcp, seed 0, ipc 7"):
        vr.distilled(job, root=root, ipc=7)
    with pytest.raises(ConfigError, match="generate seed 0 ipc 1 vlcp does not exist yet"):
        vr.distilled(job, root=root, ipc=1)
    with pytest.raises(ConfigError, match="form must be one of torch, datasets, not 'numpy'"):
        vr.distilled(job, "numpy", root=root)  # type: ignore[call-overload]


def test_show_returns_a_contact_sheet_and_the_report(job: Job, root: str) -> None:
    sheet = vr.show(job, "images", root=root)
    assert isinstance(sheet, Image.Image)
    pixels = np.asarray(sheet.convert("RGB"))
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert all(tuple(colour) in colours for colour in PIXELS.reshape(-1, 3))
    with pytest.raises(ConfigError, match="method, ipc and seed are for show"):
        vr.show(job, root=root, ipc=IPC)
    with pytest.raises(ConfigError, match="report: not made yet under"):
        vr.show(job, root=root)
    page = Store.at(root).artifact(graph(job)[-1])
    page.write_bytes("index.html", b'<p class="a">The report</p>')
    page.complete({})
    shown = vr.show(job, root=root)
    assert '<iframe srcdoc="&lt;p class=&quot;a&quot;&gt;The report&lt;/p&gt;"' in shown._repr_html_()
