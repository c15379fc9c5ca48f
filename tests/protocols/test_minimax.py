"""Tests of the minimax protocol: epochs, learning rates, the mixed loss."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from vlcp_ray.config import Evaluate
from vlcp_ray.protocols import minimax
from vlcp_ray.protocols.augment import augment, cutmix
from vlcp_ray.protocols.minimax import RECIPE, Recipe, epochs_for, learning_rate_at

AUGMENTATION = (RECIPE.crop_scale, RECIPE.jitter, RECIPE.lighting)


@pytest.mark.parametrize("epochs", [1, 5, 30, 300, 2000])
def test_learning_rate_at_equals_torchs_schedule(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    for epoch in range(epochs):
        assert learning_rate_at(epoch, epochs, 0.01) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_train_keeps_the_learning_rate_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a constant gradient of 1, no momentum and no decay, a weight falls by the sum of the learning rates."""
    monkeypatch.setattr(minimax, "RECIPE", Recipe(momentum=0.0, weight_decay=(0.0, 0.0)))
    monkeypatch.setattr(minimax, "loss", lambda network, *rest: network.weight.sum())
    network = torch.nn.Linear(1, 1, bias=False)
    start = network.weight.item()
    images = (torch.zeros(5, 3, 8, 8), torch.zeros(5))  # three steps of 2, 2 and 1
    epochs = minimax.train(network, images, Evaluate(batch_size=2), epochs=6, seed=0)
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert start - network.weight.item() == pytest.approx(3 * 0.01 * (4 + 0.2 + 0.04), rel=1e-4)


@pytest.mark.parametrize(
    ("ipc", "epochs", "of_100"),
    [
        (1, 3000, 2000),
        (2, 2000, 1300),
        (10, 2000, 1300),
        (20, 1500, 1000),
        (50, 1500, 1000),
        (100, 1000, 600),
        (200, 1000, 600),
        (500, 500, 300),
        (501, 300, 200),
    ],
)
def test_epochs_for_follows_the_table_and_cuts_those_of_100_classes(ipc: int, epochs: int, of_100: int) -> None:
    assert {epochs_for(Evaluate(), ipc, classes) for classes in (2, 10, 99, 101, 200, 1000)} == {epochs}
    assert epochs_for(Evaluate(), ipc, 100) == of_100


def test_epochs_for_with_settings_and_full_split() -> None:
    settings = Evaluate(epochs=7, full_epochs=4)
    assert epochs_for(settings, 10, 100) == 7
    assert epochs_for(settings, 0, 100) == 4
    assert epochs_for(Evaluate(full_epochs=4), 0, 10) == 4


def test_loss_weighs_both_labels_by_their_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (6, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    result = minimax.loss(network, pixels, labels, torch.Generator().manual_seed(7), flip=True)
    again = torch.Generator().manual_seed(7)
    mixed, own, pasted, share = cutmix(augment(pixels, again, True, *AUGMENTATION), labels, again)
    assert 0 < share < 1
    soft = share * torch.eye(3)[own] + (1 - share) * torch.eye(3)[pasted]
    torch.testing.assert_close(result, cross_entropy(network(mixed), soft))


def test_train_takes_steps_of_sgd_with_momentum_and_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a constant gradient of 1: two steps in each of three epochs, with a 25th of the rate in the last one."""
    monkeypatch.setattr(minimax, "loss", lambda network, *rest: network.weight.sum())
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 3.0)
    images = (torch.zeros(4, 3, 8, 8), torch.zeros(4))
    settings = Evaluate(batch_size=2, learning_rate=0.5)
    assert [epoch.number for epoch in minimax.train(network, images, settings, epochs=3, seed=0)] == [1, 2, 3]
    weight, momentum = 3.0, 0.0
    for rate in (0.5, 0.5, 0.5, 0.5, 0.5 * 0.2**2, 0.5 * 0.2**2):
        momentum = 0.9 * momentum + 1 + 5e-4 * weight
        weight -= rate * momentum
    assert network.weight.item() == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "settings", "batch", "rate", "decay"),
    [
        (10, {}, 64, 0.01, 5e-4),
        (100, {}, 64, 0.01, 5e-4),
        (101, {}, 128, 0.1, 1e-4),
        (1000, {}, 128, 0.1, 1e-4),
        (1000, {"batch_size": 50, "learning_rate": 0.02}, 50, 0.02, 1e-4),
    ],
)
def test_train_of_many_classes_has_the_released_values(
    classes: int,
    settings: dict[str, float],
    batch: int,
    rate: float,
    decay: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[torch.optim.SGD] = []
    sizes: list[int] = []
    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *a, **k: made.append(sgd(*a, **k)) or made[0])

    def record(network: torch.nn.Linear, pixels: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(pixels))
        return network.weight.sum()

    monkeypatch.setattr(minimax, "loss", record)
    images = (torch.zeros(130, 3, 1, 1), torch.zeros(130))
    network = torch.nn.Linear(1, 1)
    next(minimax.train(network, images, Evaluate.model_validate(settings), epochs=9, seed=0, num_classes=classes))
    group = made[0].param_groups[0]
    assert (sizes[0], group["lr"], group["weight_decay"], group["momentum"]) == (batch, rate, decay, 0.9)


def test_train_of_another_seed_takes_another_order() -> None:
    pixels = torch.randint(256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images = (pixels, torch.tensor([0, 1, 2, 0, 1, 2]))

    def trained(seed: int, flip: bool = True) -> torch.Tensor:
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        torch.nn.init.zeros_(network[1].weight)
        torch.nn.init.zeros_(network[1].bias)
        list(minimax.train(network, images, Evaluate(batch_size=2, flip=flip), epochs=2, seed=seed))
        return network[1].weight.detach()

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))
    assert not torch.equal(trained(0), trained(0, flip=False))


@pytest.mark.parametrize(("classes", "base"), [(10, 0.01), (100, 0.01), (1000, 0.1)])
def test_train_has_the_released_learning_rate_in_every_epoch(
    classes: int, base: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """train.py of MinimaxDiffusion: MultiStepLR at 2E/3 and 5E/6, gamma 0.2; E = 300 here."""
    made: list[torch.optim.SGD] = []
    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *a, **k: made.append(sgd(*a, **k)) or made[0])
    monkeypatch.setattr(minimax, "loss", lambda network, *rest: network.weight.sum())
    images = (torch.zeros(3, 3, 1, 1), torch.zeros(3))
    epochs = minimax.train(torch.nn.Linear(1, 1), images, Evaluate(), epochs=300, seed=0, num_classes=classes)
    rates = [made[0].param_groups[0]["lr"] for _ in epochs]
    assert rates == pytest.approx([base] * 200 + [0.2 * base] * 50 + [0.04 * base] * 50)
