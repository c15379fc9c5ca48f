"""Tests of the queue of trials: what is left to do, and the seconds of each set."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine.clock import Clock, set_clock
from tests.stages.report.test_scores import scores, trials
from vlcp_ray.config import load_job
from vlcp_ray.engine.context import Context
from vlcp_ray.monitoring.memory import Peaks
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.stages.evaluate import Trial, list_trials
from vlcp_ray.stages.evaluate import run as run_module
from vlcp_ray.store.artifact import Step, Store

JOB = load_job(
    "jobs/digits.toml", ["seeds=[0]", "ipc=[1, 5]", 'compare.methods=["random", "full"]', "evaluate.repeats=2"]
)
STEPS = [step for step in graph(JOB) if step.stage == "evaluate"]
#: Of a trial of each set, the small one, the large one and the full train split.
SECONDS = dict(zip((step.fingerprint for step in STEPS), (1.0, 4.0, 10.0), strict=True))


def write_scores(context: Context, step: Step, trial: Trial) -> None:
    row = trials(trial.method, trial.ipc, (0.5,))[0] | {"trial_id": trial.trial_id}
    table = scores([row | {"seconds": SECONDS[step.fingerprint], "network": trial.network, "epochs": 2}])
    context.artifact(step).write_table(f"scores/{trial.trial_id}.parquet", table)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(JOB, Scale(evaluate=Pool(num_workers=2)), Store.at(str(tmp_path)))


@pytest.fixture
def clock(context: Context, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the run, whose trials follow each other and take the seconds that they say and a tenth more."""
    clock = set_clock(monkeypatch, run_module.__name__)

    def work(left: Sequence[tuple[Step, Trial]], workers: int) -> Iterator[tuple[str, str, float, str, float, Peaks]]:
        assert workers == 2
        for step, trial in left:
            write_scores(context, step, trial)
            clock.now += 1.1 * SECONDS[step.fingerprint]
            yield context.artifact(step).path, trial.trial_id, 0.5, "", SECONDS[step.fingerprint], Peaks()

    def calls(_: Context, left: Any, __: object) -> Any:
        return left

    monkeypatch.setattr(run_module, "_calls", calls)
    monkeypatch.setattr(run_module, "in_flight", work)
    monkeypatch.setattr(run_module, "call_on_machines", lambda *_: [])
    monkeypatch.setattr(run_module, "_log_curve", lambda *_: None)
    return clock


def run(context: Context) -> dict[int, float]:
    """Run all trials, and return the seconds of the manifests by ipc."""
    run_module.run(context, STEPS)
    for step in STEPS:
        assert context.rows(Step("x", 1, {}, {}, {"scores": step}), "scores") == len(list_trials(step, JOB.evaluate))
    return {step.key.get("ipc", 0): context.manifest(step)["seconds"] for step in STEPS}


def test_seconds_of_sets_are_shares_by_the_seconds_of_their_trials(context: Context, clock: Clock) -> None:
    assert run(context) == pytest.approx({1: 2.2, 5: 8.8, 0: 11.0})
    assert clock.now - 1000 == pytest.approx(22.0)


def test_seconds_of_recorded_trials_are_added_divided_by_the_workers(context: Context, clock: Clock) -> None:
    """An interrupted run has recorded all trials of the small set and one of the large set."""
    small, large, _ = STEPS
    for step, count in ((small, 2), (large, 1)):
        for trial in list_trials(step, JOB.evaluate)[:count]:
            write_scores(context, step, trial)
    assert run(context) == pytest.approx({1: 2 / 2, 5: 4 / 2 + 4.4, 0: 11.0})
    assert clock.now - 1000 == pytest.approx(15.4)


def test_seconds_where_all_trials_are_recorded_are_theirs(context: Context, clock: Clock) -> None:
    for step in STEPS:
        for trial in list_trials(step, JOB.evaluate):
            write_scores(context, step, trial)
    clock.seconds = 3.0  # of a run that has nothing to do
    assert run(context) == pytest.approx({1: 1 + 2 / 2, 5: 1 + 8 / 2, 0: 1 + 10 / 2})
