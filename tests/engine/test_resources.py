"""Tests of resources: a stage waits for its devices, or fails where the cluster will never have them."""

from collections.abc import Iterator

import pytest
import ray
from ray.data import DataContext

from vlcp_ray.engine import resources
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.stages import finetune, generate, pair

pytestmark = pytest.mark.filterwarnings("default")  # Ray warns of its own settings


def test_wait_for_resources_that_fit_returns_at_once(ray_session: None) -> None:
    resources.wait_for_resources(Scale(finetune=Pool(num_workers=2)), finetune.STAGE)


def test_wait_for_resources_requires_only_min_workers(ray_session: None) -> None:
    resources.wait_for_resources(Scale(finetune=Pool(num_workers=4096, min_workers=1)), finetune.STAGE)
    resources.wait_for_resources(Scale(caption=Pool(num_workers=4096)), pair.STAGE)


@pytest.mark.parametrize(
    "pool", [Pool(num_gpus=1), Pool(num_cpus=4096), Pool(num_workers=4096)], ids=["gpu", "cpus", "ranks"]
)
def test_wait_for_resources_on_a_local_ray_raises_at_once(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ValueError, match=r"finetune: the cluster has .* CPU, 0 GPU on one machine, and the stage needs "
    ):
        resources.wait_for_resources(Scale(finetune=pool), finetune.STAGE)


def test_wait_for_resources_after_the_timeout_names_the_fix(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(resources, "_POLL_INTERVAL", 0.05)
    scale = Scale(resource_timeout=0.2, generate=Pool(num_gpus=1))
    with pytest.raises(
        ValueError, match=r"the cluster did not grow enough in \d+ s. Add machines, raise resource_timeout or reduce"
    ):
        resources.wait_for_resources(scale, generate.STAGE)
    assert "waiting for generate 1 x 1 CPU 1 GPU, batch 32; the cluster has" in capsys.readouterr().out


def test_log_resources_lists_each_pool_once(ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    resources.log_resources(
        Scale(encode=Pool(num_workers=3, min_workers=1, num_gpus=0.2)), ("caption", "encode", "caption")
    )
    logged = " ".join(capsys.readouterr().out.replace("scale", "").split())
    assert logged == "caption 1 x 1 CPU, batch 32; encode 1 to 3 x 1 CPU 0.2 GPU, batch 32"


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the limits of plans afterwards."""
    context = DataContext.get_current()
    before = context.get_config("vlcp_ray.resource_limit")
    monkeypatch.setattr(context, "custom_execution_callback_classes", [])
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", -1)
    monkeypatch.setattr(resources, "_PLAN_POLL_INTERVAL", 0.1)
    yield
    context.set_config("vlcp_ray.resource_limit", before)


def test_plan_without_its_devices_ends_after_the_timeout_with_the_fix(ray_session: None) -> None:
    resources.limit_waits_of_plans("pair", [{"CPU": 1.0, "GPU": 1.0}], "caption 1 x 1 CPU 1 GPU", timeout=2.0)
    rows = ray.data.range(4).map_batches(lambda batch: batch, batch_size=1, num_gpus=1)
    with pytest.raises(ValueError, match=r"pair: the cluster has .* and the stage needs caption 1 x 1 CPU 1 GPU; .*"):
        rows.take_all()


def test_plan_with_its_devices_outlives_the_timeout(ray_session: None) -> None:
    resources.limit_waits_of_plans("pair", [{"CPU": 1.0}], "caption 1 x 1 CPU", timeout=0.2)
    assert len(ray.data.range(2).map(slow).take_all()) == 2
    assert DataContext.get_current().execution_no_progress_timeout_s > 3600


def slow(row: dict[str, int]) -> dict[str, int]:
    import time

    time.sleep(2)
    return row
