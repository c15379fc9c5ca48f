"""Tests of the settings, trials and forecasts of evaluate."""

from dataclasses import replace
from typing import Any

import pytest

from vlcp_ray.config import Evaluate, load_job
from vlcp_ray.pipeline import graph
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.stages.evaluate import STAGE, Trial, hashed_settings, list_trials, with_soft_labels

JOB = load_job("jobs/digits-compare.toml")


def test_trials_of_a_set_cover_protocols_networks_and_repeats() -> None:
    settings = JOB.evaluate.model_copy(update={"networks": ("ConvNet-3", "ConvNet-4"), "repeats": 3})
    step = next(step for step in graph(JOB) if step.stage == STAGE.name and "set" in step.inputs)
    trials = list_trials(step, settings)
    assert len({trial.trial_id for trial in trials}) == len(trials) == 3 * 2 * 3


def test_trials_of_the_full_split_run_once_under_the_hard_protocol() -> None:
    (step,) = [step for step in graph(JOB) if step.stage == STAGE.name and "set" not in step.inputs]
    assert [(trial.protocol, trial.ipc, trial.repeat) for trial in list_trials(step, JOB.evaluate)] == [
        ("minimax", 0, 0)
    ]


def test_hashed_settings_of_the_full_split_ignore_what_only_sets_use() -> None:
    other = JOB.model_copy(update={"evaluate": JOB.evaluate.model_copy(update={"repeats": 7, "epochs": 3})})
    assert hashed_settings(other.evaluate, full=True) == hashed_settings(JOB.evaluate, full=True)
    assert hashed_settings(other.evaluate) != hashed_settings(JOB.evaluate)


def test_hashed_settings_include_what_the_protocols_of_the_job_fix() -> None:
    one = JOB.model_copy(update={"evaluate": Evaluate(protocols=("minimax",))})
    recipes = hashed_settings(one.evaluate)["recipes"]
    assert set(recipes) == {"minimax"}
    assert {"momentum", "weight_decay", "gamma", "epochs", "crop_scale", "jitter", "unvalidated"} <= set(
        recipes["minimax"]
    )
    assert set(hashed_settings(JOB.evaluate)["recipes"]) == {"minimax", "rded", "rded-stored"}
    assert set(hashed_settings(JOB.evaluate, full=True)["recipes"]) == {"minimax"}


def test_fingerprint_of_a_protocol_with_another_recipe_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = graph(JOB)
    recipe = replace(PROTOCOLS["minimax"].recipe, momentum=0.8)
    monkeypatch.setitem(PROTOCOLS, "minimax", replace(PROTOCOLS["minimax"], recipe=recipe))
    changed = [old.stage for old, new in zip(before, graph(JOB), strict=True) if old.fingerprint != new.fingerprint]
    assert set(changed) == {"evaluate", "report"}


def test_learning_rates_are_hashed_where_they_differ_from_the_recipe() -> None:
    def rates(**settings: Any) -> Any:
        evaluate = Evaluate.model_validate({"protocols": ("rded",), **settings})
        return hashed_settings(evaluate).get("rded_learning_rates")

    assert rates(networks=("ConvNet-3", "resnet50")) is None
    assert rates(networks=("ConvNet-3", "vgg11")) == {"vgg11": 5e-4}
    assert rates(networks=("vgg11",), rded_learning_rates={"vgg11": 1e-3}) is None
    assert rates(networks=("vgg11",), protocols=("minimax",)) is None


def test_only_the_first_teacher_has_trials_with_hard_labels() -> None:
    settings = Evaluate(protocols=("minimax", "rded"), batch_size=7, rded_epochs=9)
    soft = with_soft_labels(settings)
    assert (soft.protocols, soft.batch_size, soft.rded_epochs) == (("rded",), None, (9,))
    teach = JOB.teach.model_copy(update={"network": ("ResNet-18", "resnet50")})
    steps = graph(JOB.model_copy(update={"evaluate": settings, "teach": teach}))
    made = [step for step in steps if step.stage == "evaluate" and "set" in step.inputs]
    protocols = {(step.words, trial.protocol) for step in made for trial in list_trials(step, settings)}
    assert protocols == {("ResNet-18", "minimax"), ("ResNet-18", "rded"), ("resnet50", "rded")}


def test_every_number_of_epochs_has_its_trials() -> None:
    def trials(settings: Evaluate) -> list[Trial]:
        steps = graph(JOB.model_copy(update={"evaluate": settings}))
        return list_trials(next(step for step in steps if step.stage == "evaluate" and "set" in step.inputs), settings)

    settings = Evaluate(protocols=("minimax", "rded"), rded_epochs=(300, 500), repeats=2)
    ids = [trial.trial_id.split("ConvNet-6-")[1] for trial in trials(settings)]
    assert ids == ["r0", "r1", "r0-300epochs", "r1-300epochs", "r0-500epochs", "r1-500epochs"]
    plain = trials(Evaluate(repeats=1, plain_repeats=2))
    assert [(trial.trial_id.split("ConvNet-6-")[1], trial.augmented) for trial in plain] == [
        ("r0", True),
        ("r0-plain", False),
        ("r1-plain", False),
    ]
    one = trials(Evaluate(protocols=("rded",), rded_epochs=(500,), repeats=1))
    assert [
        (trial.epochs, trial.count_epochs(Evaluate(protocols=("rded",), rded_epochs=(500,)), 10)) for trial in one
    ] == [(0, 500)]


@pytest.mark.parametrize("name", ["temperature", "rded_epochs", "rded_batch_size"])
def test_setting_of_another_protocol_is_refused_and_names_it(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"{name} is for rded or rded-stored only; add rded or rded-stored to protocols"
    ):
        Evaluate(protocols=("minimax",), **{name: 3})
    Evaluate(protocols=("rded",), **{name: 3})
    Evaluate(protocols=("minimax", "rded-stored"), **{name: 3})
