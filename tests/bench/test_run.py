"""Tests of the measurement of a machine: the work that a job has, in processes of its own."""

from pathlib import Path

from vlcp_ray.bench.run import measured, wanted
from vlcp_ray.config import load_job
from vlcp_ray.cost.rates import CPU, Overheads, Rate, Rates
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Pool, derive
from vlcp_ray.stages import works

JOB = load_job(Path(__file__).parents[2] / "jobs" / "digits.toml")
SCALE = derive(2, 0).model_copy(update={"generate": Pool(batch_size=2), "encode": Pool(batch_size=4)})


#: The works of the method minimax alone.
DIT = ("finetune-dit", "sample")


def test_wanted_is_the_work_of_the_jobs_stages() -> None:
    stages = {step.stage for step in graph(JOB)}
    names = [work.name for work in wanted(JOB, stages)]
    assert names == [name for name in works() if name not in ("evaluate-bf16", *DIT)]
    half = JOB.model_copy(update={"evaluate": JOB.evaluate.model_copy(update={"precision": "bf16"})})
    assert [work.name for work in wanted(half, stages)] == [name for name in works() if name not in DIT]
    methods = JOB.compare.model_copy(update={"methods": (*JOB.compare.methods, "minimax")})
    names = [work.name for work in wanted(JOB.model_copy(update={"compare": methods}), stages)]
    assert names == [name for name in works() if name != "evaluate-bf16"]
    compare = JOB.compare.model_copy(update={"methods": ("mgd3",)})
    guided = JOB.model_copy(update={"compare": compare})
    names = [work.name for work in wanted(guided, {step.stage for step in graph(guided)})]
    assert (names.count("generate"), "decode" in names, "finetune" in names) == (1, False, False)
    saved = JOB.model_copy(update={"caption": JOB.caption.model_copy(update={"source": "table"})})
    assert "caption" not in [work.name for work in wanted(saved, stages)]


def test_measured_runs_processes_and_names_the_machine() -> None:
    results = dict(measured(JOB, SCALE, [works()["ingest"]], Overheads(), CPU, 1))
    assert isinstance(results["ingest"], Rate)
    rates = results[CPU]
    assert isinstance(rates, Rates)
    assert rates.source.startswith("measured: 1 cores of")
    assert rates.rates["ingest"].per_second > 10
    assert rates.peak > 1e8
