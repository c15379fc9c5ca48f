"""Tests of the start of ranks: their number and devices, and what Ray Train starts beside them."""

import pytest

from vlcp_ray.engine.ranks import TorchTrainer, scaling_config
from vlcp_ray.scale import Pool


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
