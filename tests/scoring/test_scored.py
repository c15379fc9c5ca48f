"""Tests of scoring given sets by real trainings: exports get the scores of their run, and scales change nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import vlcp_ray as vr
from tests.small_job import CLASSES, overrides, write_inputs
from vlcp_ray.api import open_store, read_trials
from vlcp_ray.cli import main
from vlcp_ray.config import Job, load_job
from vlcp_ray.exports.job import Choice, export, open_target
from vlcp_ray.images import center_crop, decode
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.scoring import whitening
from vlcp_ray.scoring.scales import NORMALISATIONS
from vlcp_ray.scoring.scored import Scored, scoring_job
from vlcp_ray.settings import ConfigError

pytestmark = pytest.mark.filterwarnings("default")  # of Ray, when a test starts it
SIDE = 8
_DIFFERENT = ("trial_id", "method", "seconds")
#: The labels of the small job, in the order of the names.
NAMES = sorted(CLASSES)
SETTINGS = (
    *("ipc=[2]", "compare.methods=['random']", "evaluate.protocols=['minimax','rded-stored']"),
    *("evaluate.epochs=8", "evaluate.repeats=1", "evaluate.rded_epochs=8", "teach.epochs=6", "teach.input_size=32"),
    *("teach.network=ConvNet-3", "teach.width=8"),
)


def job_of(folder: Path) -> Job:
    return load_job("digits", [*overrides(write_inputs(folder)), *SETTINGS])


@pytest.fixture(scope="module")
def made(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    """A job whose random images are scored, with an export of them in every format."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "inputs").mkdir()
    job, root = job_of(folder / "inputs"), str(folder / "runs")
    vr.run(job, root=root)
    store, steps = open_store(job, root)
    for form in ("imagefolder", "parquet", "webdataset", "dd-ranking"):
        export(job, store, steps, Choice(form, "random"), open_target(str(folder / form)))
    return job, folder


def pixels_of(made: tuple[Job, Path]) -> tuple[np.ndarray, np.ndarray]:
    """The random images at 8 x 8 pixels, and their labels."""
    store, steps = open_store(made[0], str(made[1] / "runs"))
    rows = store.artifact(next(s for s in steps if s.key.get("method") == "random")).table("synthetic", SYNTHETIC)
    images = [center_crop(decode(image.as_py()), SIDE) for image in rows["image"]]
    return np.stack(images).transpose(0, 3, 1, 2), rows["label"].to_numpy()


def train_pixels(made: tuple[Job, Path]) -> np.ndarray:
    """The training images of the job at 8 x 8 pixels, by another way than the product's."""
    files = sorted((made[1] / "inputs" / "images" / "train").rglob("*.png"))
    return np.stack([center_crop(decode(file.read_bytes()), SIDE) for file in files]).transpose(0, 3, 1, 2)


def rows_of(trials: pa.Table, method: str) -> list[dict[str, Any]]:
    rows = [row for row in trials.sort_by("trial_id").to_pylist() if row["method"] == method]
    return [{name: value for name, value in row.items() if name not in _DIFFERENT} for row in rows]


@pytest.fixture(scope="module")
def scored(made: tuple[Job, Path]) -> Scored:
    """The exports in all formats, and the same images as tensors on several scales, beside random."""
    job, folder = made
    pixels, labels = pixels_of(made)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in NORMALISATIONS["cifar10"])
    values = pixels.astype(np.float32) / 255
    tensors = {"bytes": pixels, "unit": values, "normalised": (values - mean) / std}
    for name, images in tensors.items():
        content = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels), "classes": NAMES}
        torch.save(content, folder / f"{name}.pt")
    forms = ("imagefolder", "parquet", "webdataset", "dd-ranking")
    places = [*(folder / form for form in forms), *(folder / f"{name}.pt" for name in tensors)]
    return vr.score(job, places, root=str(folder / "runs"), beside=["random"])


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "webdataset", "dd-ranking"])
def test_an_export_gets_the_scores_of_its_run_to_the_last_digit(
    form: str, scored: Scored, made: tuple[Job, Path]
) -> None:
    job, folder = made
    run = rows_of(read_trials(*open_store(job, str(folder / "runs"))), "random")
    assert len(run) == 2
    assert {row["protocol"] for row in run} == {"minimax", "rded-stored"}
    assert len({row["train_loss"] for row in run}) == 2
    assert rows_of(scored.trials, form) == run
    assert rows_of(scored.trials, "random") == run  # those of the run, which were not made again


def test_a_set_gets_the_same_scores_on_every_scale(scored: Scored, made: tuple[Job, Path]) -> None:
    job, folder = made
    pixels, labels = pixels_of(made)
    zca = whitening.fit(train_pixels(made))
    white = ((pixels.reshape(len(pixels), -1) / 255 - zca.mean) @ zca.matrix).reshape(pixels.shape)
    torch.save((torch.from_numpy(white).float(), torch.from_numpy(labels)), folder / "white.pt")
    options: dict[str, Any] = {"classes": "job", "normalised": "zca", "beside": ["random"]}
    found = vr.score(job, folder / "white.pt", root=str(folder / "runs"), **options)
    white_rows = rows_of(found.trials, "white")
    assert len(white_rows) == 2
    assert white_rows == rows_of(scored.trials, "bytes") == rows_of(scored.trials, "unit")
    assert white_rows == rows_of(scored.trials, "normalised")
    assert "8 x 8 are resized to 32 x 32" in found.sets[0]["notes"][1]
    assert found.sets[0]["scale"].startswith("float32, ZCA-whitened by the job's 160 training images")


def test_scores_say_where_the_sets_came_from_and_compare_the_first(scored: Scored, made: tuple[Job, Path]) -> None:
    folder = made[1]
    assert scored.names[:2] == ("imagefolder", "parquet")
    table = scored.table
    assert list(table["method"][:2]) == ["imagefolder", "parquet"]
    assert set(table[table["method"] == "parquet"]["source"]) == {str(folder / "parquet")}
    assert set(table[table["method"] == "random"]["source"]) == {""}
    text = str(scored)
    assert "imagefolder ahead" in text.splitlines()[0]
    assert f"from {folder / 'unit.pt'} (tensor 8 x 3 x 8 x 8, float32, 0 to 1; labels: class numbers)" in text
    found = scored.as_json()
    assert {row["source"] for row in found["trials"] if row["method"] == "bytes"} == {str(folder / "bytes.pt")}
    assert {row["method"] for row in found["sets"]} == {*scored.names, "random"}
    assert {row["gpu_seconds"] for row in found["sets"] if row["method"] != "random"} == {None}
    assert (folder / "runs" / Path(scored.page).name / "index.html").exists()


def test_score_again_trains_nothing_and_prints_one_object(
    scored: Scored, made: tuple[Job, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made[1]
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*.parquet")}
    settings = [part for one in (*overrides(folder / "inputs"), *SETTINGS) for part in ("--set", one)]
    places = [facts["source"] for facts in scored.sets]
    options = ["--job", "digits", "--root", str(folder / "runs"), "--beside", "random", "--json"]
    assert main(["score", *places, *options, *settings]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(scored.as_json()))
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*.parquet")} == before


def test_own_soft_labels_are_trained_with_under_stored_labels_only(made: tuple[Job, Path]) -> None:
    job, folder = made
    pixels, labels = pixels_of(made)
    soft = np.full((len(labels), 4), 0.1, np.float32)
    soft[np.arange(len(labels)), labels] = 0.7
    for name, rows in (("hard", labels), ("soft", soft)):
        content = {"images": torch.from_numpy(pixels), "labels": torch.from_numpy(rows), "classes": NAMES}
        torch.save(content, folder / f"{name}.pt")
    places = [folder / "hard.pt", folder / "soft.pt"]
    found = vr.score(job, places, root=str(folder / "runs"), beside=["random"])
    hard, soft_rows = ({row["protocol"]: row for row in rows_of(found.trials, name)} for name in ("hard", "soft"))
    assert soft_rows["minimax"] == hard["minimax"]
    assert soft_rows["rded-stored"]["teacher"] == "the set itself"
    assert hard["rded-stored"]["teacher"] == "ConvNet-3, 6 epochs"
    assert soft_rows["rded-stored"]["train_loss"] != hard["rded-stored"]["train_loss"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["set", "--beside", "vlcp"], "--beside vlcp: nothing is distilled here; choose among"),
        (["set", "--name", "random"], "'random' is the name of a method"),
        (["set", "--labels", "x.pt"], "--labels is for sets of tensor files"),
        (["set", "--set", "ingest.source=nowhere"], "there is no nowhere"),
    ],
)
def test_score_that_is_impossible_exits_2_with_one_sentence_before_anything_is_written(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    inputs = write_inputs(tmp_path)
    (tmp_path / "set").symlink_to(inputs / "images")
    source = ["--set", f"ingest.source={inputs}/images"]
    assert main(["score", "--job", "digits", "--root", "runs", *source, *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_scoring_job_keeps_what_scores_depend_on_and_compares_with_coresets() -> None:
    job = load_job("digits")
    made = scoring_job(job, None, [(3, 7), (0, 7)])
    assert made.compare.methods == ("random", "herding", "k-center", "full")  # the job has full
    assert (made.ipc, made.seeds) == ((7,), (0, 3))
    assert made.evaluate == job.evaluate
    assert scoring_job(job, ["rded"]).compare.methods == ("rded",)
    with pytest.raises(ConfigError, match="--beside: name at least one of"):
        scoring_job(job, [])
