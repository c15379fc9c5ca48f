"""Tests of the settings, trials and forecasts of evaluate."""

import pytest

from vlcp_ray.config import Evaluate, load_job
from vlcp_ray.pipeline import graph
from vlcp_ray.stages.evaluate import STAGE, hashed_settings, trials_of

JOB = load_job("jobs/digits-compare.toml")


def test_trials_of_a_set_cover_protocols_networks_and_repeats() -> None:
    settings = JOB.evaluate.model_copy(update={"networks": ("ConvNet-3", "ConvNet-4"), "repeats": 3})
    step = next(step for step in graph(JOB) if step.stage == STAGE.name and "set" in step.inputs)
    trials = trials_of(step, settings)
    assert len({trial.trial_id for trial in trials}) == len(trials) == 2 * 2 * 3


def test_trials_of_the_full_split_run_once_under_the_hard_protocol() -> None:
    (step,) = [step for step in graph(JOB) if step.stage == STAGE.name and "set" not in step.inputs]
    assert [(trial.protocol, trial.ipc, trial.repeat) for trial in trials_of(step, JOB.evaluate)] == [("minimax", 0, 0)]


def test_hashed_settings_of_the_full_split_ignore_what_only_sets_use() -> None:
    other = JOB.model_copy(update={"evaluate": JOB.evaluate.model_copy(update={"repeats": 7, "epochs": 3})})
    assert hashed_settings(other, full=True) == hashed_settings(JOB, full=True)
    assert hashed_settings(other) != hashed_settings(JOB)


@pytest.mark.parametrize("name", ["temperature", "rded_epochs", "rded_batch_size"])
def test_setting_of_another_protocol_is_refused_and_names_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is for the rded protocol only; add it to protocols"):
        Evaluate(protocols=("minimax",), **{name: 3})
    Evaluate(protocols=("rded",), **{name: 3})
