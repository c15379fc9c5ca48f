"""Tests of measuring the time that Ray takes."""

import time

import pytest

from vlcp_ray.engine.overheads import measure_overheads
from vlcp_ray.scale import Pool, Scale


@pytest.mark.faults
@pytest.mark.filterwarnings("default")
def test_measure_overheads_measures_a_task_a_plan_and_a_training_group(ray_session: None) -> None:
    start = time.monotonic()
    overheads = measure_overheads(Scale(finetune=Pool(num_workers=1, num_cpus=0.5)))
    elapsed = time.monotonic() - start
    seconds = [overheads.ray, overheads.task, overheads.plan, overheads.train]
    assert min(seconds) > 0
    assert elapsed / 2 < sum(seconds) <= elapsed
