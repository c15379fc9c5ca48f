"""Tests of the measurement of one kind of work, in this process."""

import time

import pytest

from tests.bench.test_run import JOB, SCALE
from vlcp_ray.bench import measure
from vlcp_ray.cost.estimate import loads
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.cost.requirements import expected_images
from vlcp_ray.pipeline import graph
from vlcp_ray.stages import works


@pytest.mark.parametrize("work", ["ingest", "encode", "finetune", "prototype", "decode"])
def test_measure_of_each_work_has_a_rate(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    task = measure.Task(work=work, job=JOB, scale=SCALE, started=time.time(), cpus=1)
    result = measure.measure(task)
    assert result["per_second"] > 0
    assert result["images"] > 0
    assert result["start"] >= 0
    assert result["gib"] > 0.1


@pytest.mark.parametrize("name", ["finetune", "encode"])
def test_make_batch_counts_the_operations_of_the_plan(name: str) -> None:
    images = expected_images(JOB)
    assert images is not None
    load = next(
        load for _, load in loads(CostInputs.for_job(JOB, images, 60, SCALE), graph(JOB)) if load.work.name == name
    )
    done = works()[name].make_batch(JOB, getattr(SCALE, name))()
    count = load.images or load.units  # the load of captioning counts the images of encoding
    assert done.amount / done.images == pytest.approx(load.amount / count)


def test_peak_gib_grows_with_memory_that_is_used() -> None:
    before = measure.peak_gib()
    block = bytearray(int((before + 0.1) * 2**30))  # more than this process has ever had
    assert measure.peak_gib() > before + 0.05
    del block
