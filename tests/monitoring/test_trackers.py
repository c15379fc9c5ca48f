"""Tests of the trackers, with real runs: Weights & Biases offline, MLflow with a local file store."""

import importlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image_sets import encoded, noise
from vlcp_ray.images import decode
from vlcp_ray.monitoring import trackers
from vlcp_ray.settings import ConfigError

PNG = encoded(noise(0, (8, 8)), "PNG")
SERIES = "finetune/seed-0"
#: The same values, once recorded by one run of a job, and once by a run and the one that resumes it.
RUNS = [[[(41, {"loss": 0.5}), (82, {"loss": 0.25})]], [[(41, {"loss": 0.5})], [(82, {"loss": 0.25})]]]
_WANDB_BLOCK = 2**15


def test_check_installed_of_a_missing_tracker_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    trackers.check_installed("")
    with pytest.raises(ConfigError, match=r"--track wandb: the package is not installed; install the extra"):
        trackers.check_installed("wandb")


def test_open_tracker_without_a_name_returns_none() -> None:
    assert trackers.open_tracker("", "digits", "0123") is None


def record_runs(name: str, runs: list[list[tuple[int, dict[str, float]]]]) -> None:
    for scalars in runs:
        tracker = trackers.open_tracker(name, "digits", "0123")
        assert tracker is not None
        tracker.record(SERIES, scalars, {"validation/00": PNG} if scalars[-1][0] == 82 else {})
        tracker.close()


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a new file store, which MLflow 3 opens only on request."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return mlflow.MlflowClient()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("runs", RUNS, ids=["whole", "resumed"])
def test_mlflow_records_every_value_and_image_in_one_run(
    mlflow_client: Any, tmp_path: Path, runs: list[list[tuple[int, dict[str, float]]]]
) -> None:
    record_runs("mlflow", runs)
    experiment = mlflow_client.get_experiment_by_name("vlcp_ray").experiment_id
    (run,) = mlflow_client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("digits", "FINISHED")
    history = mlflow_client.get_metric_history(run.info.run_id, f"{SERIES}/loss")
    assert [(metric.step, metric.value) for metric in history] == [(41, 0.5), (82, 0.25)]
    (image,) = mlflow_client.list_artifacts(run.info.run_id, f"{SERIES}/validation")
    assert image.path == f"{SERIES}/validation/00-82.png"
    (file,) = (tmp_path / "mlruns").rglob("00-82.png")
    assert decode(file.read_bytes()).tobytes() == decode(PNG).tobytes()


@pytest.fixture
def wandb_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all files that Weights & Biases writes while it is offline."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    wandb.teardown()  # its service reads these variables when it starts
    yield tmp_path
    wandb.teardown()


def wandb_records(file: Path) -> Iterator[Any]:
    """Read the records of an offline run: a header, then blocks with chunks of (checksum, length, kind, content)."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, position, content = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := _WANDB_BLOCK - position % _WANDB_BLOCK) < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole record, or its last chunk
            yield record.FromString(content)
            content = b""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("runs", RUNS, ids=["whole", "resumed"])
def test_wandb_records_every_value_and_image_in_one_run(
    wandb_folder: Path, runs: list[list[tuple[int, dict[str, float]]]]
) -> None:
    record_runs("wandb", runs)
    importlib.import_module("wandb").teardown()  # its service writes until it ends
    files = sorted(wandb_folder.rglob("*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    records = [record for file in files for record in wandb_records(file)]
    headers = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {(run.project, run.display_name, run.run_id) for run in headers} == {("vlcp_ray", "digits", "digits-0123")}
    histories = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    rows = [{"/".join(item.nested_key): item.value_json for item in history.item} for history in histories]
    losses = [(row[f"{SERIES}/step"], row[f"{SERIES}/loss"]) for row in rows if f"{SERIES}/loss" in row]
    assert losses == [("41", "0.5"), ("82", "0.25")]
    (image,) = (row for row in rows if f"{SERIES}/validation/00/path" in row)
    assert image[f"{SERIES}/step"] == "82"
    (png,) = wandb_folder.rglob("media/**/*.png")
    assert decode(png.read_bytes()).tobytes() == decode(PNG).tobytes()
