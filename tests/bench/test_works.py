"""Whether each kind of work is measured through the job's own stages, and its operations are those of the plan."""

import time
from pathlib import Path

import pytest

from vlcp_ray.bench import works
from vlcp_ray.bench.run import measured, wanted
from vlcp_ray.config import load_job
from vlcp_ray.cost.loads import loads
from vlcp_ray.cost.rates import CPU, Overheads, Rate, Rates
from vlcp_ray.cost.work import models
from vlcp_ray.needs import needs
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Pool, derive

JOB = load_job(Path(__file__).parents[2] / "jobs" / "digits.toml")
SCALE = derive(2, 0).model_copy(update={"generate": Pool(batch_size=2), "encode": Pool(batch_size=4)})


@pytest.mark.parametrize("work", ["ingest", "encode", "finetune", "prototype", "decode"])
def test_a_batch_of_every_kind_says_what_it_did(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "_SECONDS", 0.0)
    task = works.Task(work=work, job=JOB, scale=SCALE, started=time.time(), cpus=1)
    found = works.measure(task)
    assert found["per_second"] > 0
    assert found["images"] > 0
    assert found["start"] >= 0


def test_the_operations_of_a_measured_batch_are_those_of_the_plan() -> None:
    images = needs(JOB, graph(JOB)).images
    assert images is not None
    planned = {load.rate: load for load in loads(JOB, graph(JOB), images, models(JOB), 60) if load.stage != "teach"}
    count, amount = works.WORKS["finetune"](JOB, SCALE.finetune)()
    tuned = next(load for load in loads(JOB, graph(JOB), images, models(JOB), 60) if load.rate == "finetune")
    assert tuned.amount is not None
    assert amount / count == pytest.approx(tuned.amount / tuned.images)
    count, amount = works.WORKS["encode"](JOB, SCALE.encode)()
    assert amount / count == pytest.approx((planned["encode"].amount or 0) / planned["encode"].images)


def test_a_job_is_measured_by_the_work_that_it_has() -> None:
    stages = {step.stage for step in graph(JOB)}
    assert wanted(JOB, stages) == list(works.WORKS)
    told = JOB.model_copy(update={"caption": JOB.caption.model_copy(update={"source": "table"})})
    assert "caption" not in wanted(told, stages)


def test_processes_of_their_own_measure_and_the_rates_say_where() -> None:
    found = dict(measured(JOB, SCALE, ["ingest"], Overheads(), CPU, 1))
    assert isinstance(found["ingest"], Rate)
    rates = found[CPU]
    assert isinstance(rates, Rates)
    assert rates.source.startswith("measured: 1 cores of")
    assert rates.rates["ingest"].per_second > 10
    assert rates.peak > 1e8
