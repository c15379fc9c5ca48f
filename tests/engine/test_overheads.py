"""Tests of measuring the time that Ray takes."""

import pytest

from vlcp_ray.engine.overheads import measure_overheads
from vlcp_ray.scale import Pool, Scale


@pytest.mark.faults
@pytest.mark.filterwarnings("default")
def test_measure_overheads_measures_a_task_a_plan_and_a_training_group(ray_session: None) -> None:
    overheads = measure_overheads(Scale(finetune=Pool(num_workers=1, num_cpus=0.5)))
    assert 0 <= overheads.ray < 1  # it is running already
    assert 0 < overheads.task < overheads.plan < overheads.train < 100
