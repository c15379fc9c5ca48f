"""Tests of training the teacher."""

from collections.abc import Mapping

import pytest
import torch

from tests.labelled_digits import NAMES, digits
from vlcp_ray.config import Teach
from vlcp_ray.stages.teach import Recipe, train
from vlcp_ray.stages.teach.train import TrainedTeacher, learning_rate_at, train_teacher

SETTINGS = Teach(network="ConvNet-3", width=16, input_size=16, epochs=8, batch_size=32, validations=4, flip=False)
TRAIN, VAL = digits(0, 300), digits(1000, 1200)


@pytest.fixture(scope="module")
def trained() -> TrainedTeacher:
    return train_teacher(TRAIN, VAL, NAMES, SETTINGS, 0, "cpu")


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_train_teacher_on_300_digits_is_far_above_chance(trained: TrainedTeacher) -> None:
    assert trained.top1 > 0.8
    assert trained.top1 <= trained.top5 <= 1
    assert trained.class_names == NAMES
    assert len(trained.curve) == 4
    assert trained.curve[-1] == trained.top1


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_train_teacher_is_independent_of_global_random_state(precision: str) -> None:
    short = SETTINGS.model_copy(update={"epochs": 1, "mixed_precision": precision})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_teacher(TRAIN, VAL, NAMES, short, 0, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(train_teacher(TRAIN, VAL, NAMES, short, 0, "cpu").state, first.state)
    assert not same(train_teacher(TRAIN, VAL, NAMES, short, 1, "cpu").state, first.state)


def test_train_teacher_on_large_images_crops_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "RECIPE", Recipe(largest_shifted=8))
    monkeypatch.setattr(train, "random_shift", None)
    assert train_teacher(TRAIN, VAL, NAMES, SETTINGS.model_copy(update={"epochs": 1}), 0, "cpu").top1 > 0


def test_train_teacher_on_an_unusable_set_is_refused() -> None:
    with pytest.raises(ValueError, match="teach: the val set has no images"):
        train_teacher(TRAIN, digits(0, 0), NAMES, SETTINGS, 0, "cpu")


def test_learning_rate_at_rises_for_a_fifth_and_falls_to_zero() -> None:
    rates = [learning_rate_at(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 * 0.5 / 20)
    assert rates[19] == pytest.approx(0.1 * 19.5 / 20)
    assert max(rates) == rates[20] == pytest.approx(0.1, rel=1e-3)
    assert rates[59] + rates[60] == pytest.approx(0.1)  # half way down
    assert 0 < rates[99] < 1e-4
    assert 0 < learning_rate_at(0, 1, 0.1) < 0.1
