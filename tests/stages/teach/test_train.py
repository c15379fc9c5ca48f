"""Tests of training the teacher."""

import math
from collections.abc import Mapping

import pytest
import torch

from tests.labelled_digits import NAMES, digits
from vlcp_ray.config import Teach
from vlcp_ray.models.teacher import build_teacher
from vlcp_ray.protocols import teacher_training
from vlcp_ray.protocols.augment import augment_without_jitter, random_shift
from vlcp_ray.protocols.labelled_images import to_device
from vlcp_ray.protocols.teacher_training import learning_rate_at
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.teach import Recipe, train
from vlcp_ray.stages.teach.train import TrainedTeacher, train_teacher

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
    monkeypatch.setattr(teacher_training, "RECIPE", Recipe(largest_shifted=8))
    monkeypatch.setattr(teacher_training, "random_shift", None)
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


def test_train_teacher_takes_nesterov_steps_of_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with SGD by hand: 21 images in batches of 10 and 11, with two epochs of two steps."""
    seen: list[tuple[int, float]] = []
    made: list[torch.optim.Optimizer] = []
    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *a, **k: made.append(sgd(*a, **k)) or made[0])

    def loss(network: torch.nn.Module, pixels: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append((len(pixels), made[0].param_groups[0]["lr"]))
        return sum((weight.sum() for weight in network.parameters()), torch.zeros(()))

    monkeypatch.setattr(teacher_training, "_loss", loss)
    monkeypatch.setattr(train, "guesses", lambda *_: False)  # this loss teaches nothing
    settings = SETTINGS.model_copy(update={"epochs": 2, "batch_size": 10, "validations": 1, "learning_rate": 0.1})
    few = digits(0, 21)
    trained = train_teacher(few, VAL, NAMES, settings, 0, "cpu")
    assert [size for size, _ in seen] == [10, 11, 10, 11]
    assert [rate for _, rate in seen] == pytest.approx([learning_rate_at(step, 4, 0.1) for step in range(4)])
    group = made[0].param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, Recipe().weight_decay, True)
    assert len(trained.curve) == 1
    start = build_teacher(settings, 10, 16, seed_for(0, "teach", "weights"))
    weight = next(start.parameters()).flatten()[0].item()
    momentum = 0.0
    for step in range(4):
        gradient = 1 + Recipe().weight_decay * weight
        momentum = 0.9 * momentum + gradient
        weight -= learning_rate_at(step, 4, 0.1) * (gradient + 0.9 * momentum)
    assert next(iter(trained.state.values())).flatten()[0].item() == pytest.approx(weight, abs=1e-5)


@pytest.mark.parametrize(("largest_shifted", "shift", "padding"), [(16, 8, 2), (16, 4, 4), (15, 8, None)])
def test_loss_shifts_images_up_to_the_size_of_the_recipe(
    largest_shifted: int, shift: int, padding: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_training, "RECIPE", Recipe(largest_shifted=largest_shifted, shift=shift))
    pixels, labels = to_device(digits(0, 12), "cpu")
    network, seen = build_teacher(SETTINGS, 10, 16, 0).eval(), list[torch.Tensor]()
    loss = teacher_training._loss(network, pixels, labels, torch.Generator().manual_seed(3), SETTINGS, seen.append)
    again = torch.Generator().manual_seed(3)
    if padding is None:
        views = augment_without_jitter(pixels, again, False, Recipe().crop_scale)
    else:
        views = random_shift(pixels, again, False, padding)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(network(views), labels))
    torch.testing.assert_close(seen, [network(views)])


def test_learning_rate_at_the_end_of_the_rise_is_the_highest() -> None:
    """Five steps rise for one: its middle has half the rate, and the next is an eighth down the decay."""
    assert learning_rate_at(0, 5, 1.0) == pytest.approx(0.5)
    assert learning_rate_at(1, 5, 1.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 8)))
    assert learning_rate_at(4, 5, 1.0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_train_teacher_that_does_not_learn_is_refused() -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    with pytest.raises(
        ValueError, match=r"the teacher did not learn: .* its top-1 on the training images .*, as by guessing; raise"
    ):
        train_teacher(digits(0, 100), VAL, NAMES, settings, 0, "cpu")


def test_train_teacher_that_diverges_at_the_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights after the last epoch are saved, however good earlier ones were."""
    rate, steps = teacher_training.learning_rate_at, 8 * 10
    monkeypatch.setattr(
        teacher_training, "learning_rate_at", lambda step, *rest: 1e9 if step > steps - 4 else rate(step, *rest)
    )
    with pytest.raises(ValueError, match="the teacher did not learn: after the last epoch its loss is"):
        train_teacher(TRAIN, VAL, NAMES, SETTINGS, 0, "cpu")


def test_train_teacher_has_one_cycle_of_the_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten epochs of two steps: four steps of rise, then a cosine; each step has the rate of its middle."""
    rates: list[float] = []
    made: list[torch.optim.Optimizer] = []
    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *a, **k: made.append(sgd(*a, **k)) or made[0])

    def loss(network: torch.nn.Module, *rest: object) -> torch.Tensor:
        rates.append(made[0].param_groups[0]["lr"])
        return sum((0 * weight.sum() for weight in network.parameters()), torch.zeros(()))

    monkeypatch.setattr(teacher_training, "_loss", loss)
    monkeypatch.setattr(train, "guesses", lambda *_: False)  # this loss teaches nothing
    settings = SETTINGS.model_copy(update={"epochs": 10, "batch_size": 10, "validations": 1, "learning_rate": 0.1})
    train_teacher(digits(0, 20), VAL, NAMES, settings, 0, "cpu")
    assert len(rates) == 20
    assert rates[:4] == pytest.approx([0.0125, 0.0375, 0.0625, 0.0875])
    assert rates[4:] == pytest.approx([0.05 * (1 + math.cos(math.pi * (step + 0.5) / 16)) for step in range(16)])
    assert (rates[10], rates[19]) == pytest.approx((0.06451423, 0.000240764), rel=1e-5)
