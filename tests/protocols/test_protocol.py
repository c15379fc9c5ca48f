"""Tests of the protocol records: settings, val images, and when a training is validated."""

import dataclasses
from pkgutil import resolve_name

import pytest

from vlcp_ray.config import Evaluate
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.protocols.protocol import Protocol, should_validate


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_protocol_names_its_training_and_fields_of_evaluate(protocol: Protocol) -> None:
    assert callable(resolve_name(protocol.training))
    assert set(protocol.settings) <= set(Evaluate.model_fields)
    assert protocol.needs_teacher == (protocol.labels in ("stored", "teacher"))


@pytest.mark.parametrize(("size", "rded"), [(224, 256), (64, 72), (32, 32), (28, 32), (16, 16), (12, 12)])
def test_protocol_resize_of_val_images(size: int, rded: int) -> None:
    assert PROTOCOLS["rded"].resize(size) == rded
    assert PROTOCOLS["minimax"].resize(size) == size


@pytest.mark.parametrize(("epochs", "checks"), [(1, 1), (60, 60), (100, 100), (300, 100), (250, 125), (2000, 100)])
def test_should_validate_is_about_a_hundred_times_and_after_the_last_epoch(epochs: int, checks: int) -> None:
    when = [epoch for epoch in range(1, epochs + 1) if should_validate(epoch, epochs, 100)]
    assert len(when) == checks
    assert when[-1] == epochs


@pytest.mark.parametrize(
    ("name", "ipc", "classes", "batch", "steps"),
    [
        ("minimax", 10, 10, 64, 2),
        ("minimax", 10, 1000, 128, 79),
        ("rded", 1, 10, 10, 1),
        ("rded", 10, 10, 50, 2),
        ("rded-stored", 10, 1000, 100, 100),
    ],
)
def test_protocol_counts_the_steps_of_its_recipe(name: str, ipc: int, classes: int, batch: int, steps: int) -> None:
    count = ipc * classes
    assert PROTOCOLS[name].batch_size(Evaluate(), ipc, classes, count) == batch
    assert PROTOCOLS[name].steps_per_epoch(Evaluate(), "ConvNet-6", ipc, classes, count) == steps


def test_a_single_last_image_is_no_step_where_batches_have_two() -> None:
    assert PROTOCOLS["rded"].steps_per_epoch(Evaluate(), "ConvNet-6", 1, 11, 11) == 1
    for network, steps in (("ConvNet-6", 2), ("resnet50", 1), ("vgg11", 2)):  # with instance norm, batch norm, none
        assert PROTOCOLS["minimax"].steps_per_epoch(Evaluate(batch_size=10), network, 1, 11, 11) == steps


def test_only_several_numbers_of_epochs_are_budgets() -> None:
    rded = PROTOCOLS["rded"]
    assert rded.budgets(Evaluate(protocols=("rded",), rded_epochs=300)) == ()  # type: ignore[arg-type]
    assert rded.budgets(Evaluate(protocols=("rded",), rded_epochs=(300, 500))) == (300, 500)
    assert PROTOCOLS["minimax"].budgets(Evaluate()) == ()


def test_should_validate_after_an_odd_last_epoch() -> None:
    assert [epoch for epoch in range(1, 302) if should_validate(epoch, 301, 100)][-2:] == [300, 301]


@pytest.mark.parametrize("epochs", [1, 4, 5, 50, 300])
def test_validated_epochs_of_rded_are_in_the_last_fifth(epochs: int) -> None:
    when = PROTOCOLS["rded"].validated_epochs(epochs, 100)
    assert when[-1] == epochs
    assert min(when) > 0.8 * epochs
    assert len(when) == max(1, min(20, epochs // 5))


def test_protocol_hashes_its_norm_and_its_recipe() -> None:
    minimax, rded = (PROTOCOLS[name].hashed_settings() for name in ("minimax", "rded"))
    assert (minimax["norm"], minimax["unvalidated"], minimax["momentum"]) == ("instance", 0.0, 0.9)
    assert (rded["norm"], rded["unvalidated"], rded["learning_rate"]) == ("batch", 0.8, 1e-3)
    assert rded.keys() == {"norm", "unvalidated", *vars(PROTOCOLS["rded"].recipe)}


def test_protocol_train_calls_the_function_that_it_names() -> None:
    protocol = dataclasses.replace(PROTOCOLS["minimax"], training="builtins:sorted")
    assert protocol.train([1, 3, 2], reverse=True) == [3, 2, 1]


def test_protocol_validates_after_its_share_of_the_epochs() -> None:
    protocol = dataclasses.replace(PROTOCOLS["minimax"], unvalidated=0.5)
    assert protocol.validated_epochs(8, 8) == [5, 6, 7, 8]
    assert protocol.validated_epochs(8, 2) == [8]
    assert protocol.validated_epochs(9, 4) == [6, 8, 9]
    assert PROTOCOLS["minimax"].validated_epochs(4, 4) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("protocol", "classes", "epochs"),
    [
        # train.py of MinimaxDiffusion: by ipc, and two thirds, floored to hundreds, with exactly 100 classes.
        ("minimax", 10, (3000, 2000, 1500, 1000)),
        ("minimax", 100, (2000, 1300, 1000, 600)),
        ("minimax", 1000, (3000, 2000, 1500, 1000)),
        # RDED's published scripts (re_epochs).
        *(("rded", classes, (300, 300, 300, 300)) for classes in (10, 100, 1000)),
    ],
)
def test_protocol_epochs_for_ipc_1_10_50_100(protocol: str, classes: int, epochs: tuple[int, ...]) -> None:
    settings = Evaluate(protocols=(protocol,), networks=("ResNet-18",))
    assert tuple(PROTOCOLS[protocol].epochs(settings, ipc, classes) for ipc in (1, 10, 50, 100)) == epochs
