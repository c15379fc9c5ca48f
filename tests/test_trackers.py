"""Whether records reach Weights & Biases and MLflow where they are installed, and what is said where they are not."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.image_sets import encoded, noise
from vlcp_ray import trackers
from vlcp_ray.settings import ConfigError

PNG = encoded(noise(0, (8, 8)), "PNG")
STEPS = [(41, {"loss": 0.5}), (82, {"loss": 0.25})]


def test_a_tracker_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    trackers.check("")
    with pytest.raises(ConfigError, match=r"--track wandb: the package is not installed; pip install wandb"):
        trackers.check("wandb")


@pytest.mark.filterwarnings("default")
def test_mlflow_has_every_value_and_a_resumed_job_goes_on_in_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    for step in STEPS:
        tracker = trackers.opened("mlflow", "digits", "0123")
        assert tracker is not None
        tracker.keep("finetune/seed-0", [step], {"validation/00": PNG} if step[0] == 82 else {})
        tracker.close()
    client = mlflow.MlflowClient()
    place = client.get_experiment_by_name("vlcp_ray").experiment_id
    (run,) = client.search_runs([place])
    history = client.get_metric_history(run.info.run_id, "finetune/seed-0/loss")
    assert [(metric.step, metric.value) for metric in history] == [(41, 0.5), (82, 0.25)]
    (image,) = client.list_artifacts(run.info.run_id, "finetune/seed-0/validation")
    assert image.path.endswith("00-82.png")


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_has_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = trackers.opened("wandb", "digits", "0123")
    assert tracker is not None
    tracker.keep("finetune/seed-0", STEPS, {"validation/00": PNG})
    tracker.close()
    (kept,) = tmp_path.rglob("*.wandb")
    content = kept.read_bytes()
    assert all(word in content for word in (b"finetune/seed-0/loss", b"0.25", b"validation/00"))
