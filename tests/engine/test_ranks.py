"""Tests of the start of ranks: their number and devices, and what Ray Train starts beside them."""

import signal
import uuid
from pathlib import Path

import pytest
from ray.train import ControllerError, FailureConfig, RunConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from vlcp_ray.engine.ranks import TorchTrainer, _refusal, scaling_config
from vlcp_ray.scale import Pool
from vlcp_ray.store.io import StoreError


@pytest.mark.parametrize(
    ("pool", "workers", "resources"),
    [
        (Pool(num_workers=3, num_cpus=2), 3, {"CPU": 2}),
        (Pool(num_workers=3, min_workers=3, num_gpus=1), 3, {"CPU": 1, "GPU": 1}),
        (Pool(num_workers=8, min_workers=2, num_gpus=0.5), (2, 8), {"CPU": 1, "GPU": 0.5}),
    ],
)
def test_scaling_config_has_the_workers_and_devices_of_the_pool(
    pool: Pool, workers: int | tuple[int, int], resources: dict[str, float]
) -> None:
    config = scaling_config(pool)
    assert (config.num_workers, config.resources_per_worker) == (workers, resources)
    assert config.use_gpu == ("GPU" in resources)


@pytest.mark.filterwarnings("default")
def test_local_training_waits_for_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = TorchTrainer(lambda: None, scaling_config=scaling_config(Pool()))

    def callbacks() -> set[str]:
        return {type(callback).__name__ for callback in trainer._create_default_callbacks()}

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    local = callbacks()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert callbacks() - local == {"PlacementGroupCleanerCallback"}
    assert "BackendSetupCallback" in local


@pytest.mark.filterwarnings("default")
def test_training_that_a_rank_refuses_ends_at_once_with_its_error(ray_session: None, tmp_path: Path) -> None:
    def refuse(config: dict[str, str]) -> None:
        Path(config["folder"], uuid.uuid4().hex).touch()
        raise ValueError("finetune.batch_size: lower it")

    (tmp_path / "attempts").mkdir()
    before = signal.getsignal(signal.SIGINT)
    trainer = TorchTrainer(
        refuse,
        train_loop_config={"folder": str(tmp_path / "attempts")},
        scaling_config=scaling_config(Pool(num_cpus=1)),
        run_config=RunConfig(name="refused", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=3)),
    )
    with pytest.raises(ValueError, match=r"finetune\.batch_size: lower it"):
        trainer.fit()
    assert len(list((tmp_path / "attempts").iterdir())) == 1
    assert signal.getsignal(signal.SIGINT) is before  # Ctrl-C works in the stages that follow


def test_only_what_another_attempt_cannot_mend_is_a_refusal() -> None:
    for error, ends in ((ValueError("x"), True), (StoreError("away"), False), (RuntimeError("x"), False)):
        failures = {0: RuntimeError("connection closed by peer"), 1: UserExceptionWithTraceback(error, "trace")}
        assert (_refusal(WorkerGroupError("failed", failures)) is error) == ends
    assert _refusal(ControllerError(ValueError("x"))) is None
