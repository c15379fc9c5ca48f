"""Tests of the rded protocol: batches, learning rates, decay and the soft loss."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tests.labelled_digits import digits
from vlcp_ray.config import Evaluate
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.protocols import rded
from vlcp_ray.protocols.augment import augment_without_jitter, cutmix
from vlcp_ray.protocols.labelled_images import to_device
from vlcp_ray.protocols.rded import batch_size_for, decay_groups, epochs_for, learning_rate_at, learning_rate_for

SETTINGS = Evaluate(protocols=("rded",), networks=("ConvNet-3",), input_size=16)


def convnet(seed: int = 0) -> nn.Module:
    return build_classifier("ConvNet-3", num_classes=10, input_size=16, width=4, seed=seed, norm="batch")


def test_soft_label_loss_equals_a_computation_by_hand() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(0, 30, (2, 5, 7))

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits / 20 - (logits / 20).max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    p, q = softmax(teacher), softmax(student)
    by_hand = (p * (np.log(p) - np.log(q))).sum() / 5
    result = rded.soft_label_loss(torch.tensor(student), torch.tensor(teacher), 20.0)
    assert result.item() == pytest.approx(by_hand)
    assert rded.soft_label_loss(torch.tensor(teacher), torch.tensor(teacher), 20.0).item() == pytest.approx(0)


def test_loss_gives_the_teacher_the_mixed_images_and_no_gradient() -> None:
    inputs: list[torch.Tensor] = []

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(10))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            inputs.append(images)
            return images.mean((1, 2, 3))[:, None] * self.weight

    pixels, labels = to_device(digits(0, 8), "cpu")
    network, teacher, settings = convnet(), Recording(), SETTINGS.model_copy(update={"factor": 2})
    loss = rded.loss(network, teacher, pixels, labels, torch.Generator().manual_seed(3), settings)
    loss.backward()
    assert teacher.weight.grad is None
    again = torch.Generator().manual_seed(3)
    mixed = cutmix(augment_without_jitter(pixels, again, True, (0.5, 1.0), 2), labels, again)[0]
    assert torch.equal(inputs[0], mixed)
    expected = rded.soft_label_loss(convnet()(mixed), teacher(mixed), 20.0)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("epoch", "share"), [(0, 1.0), (150, (1 + math.sqrt(0.5)) / 2), (300, 0.5)])
def test_learning_rate_at_falls_to_a_half(epoch: int, share: float) -> None:
    assert learning_rate_at(epoch, 300, 2e-3) == pytest.approx(2e-3 * share)


def test_learning_rate_for_a_network_is_the_released_one_unless_set() -> None:
    rates = {"ConvNet-3": 1e-3, "resnet50": 1e-3, "resnet101": 1e-3, "vgg11": 5e-4, "efficientnet_b0": 2e-3}
    rates |= {"mobilenet_v2": 2.5e-3, "alexnet": 1e-4, "vit_b_16": 1e-4, "swin_v2_t": 1e-4}
    assert {name: learning_rate_for(SETTINGS, name) for name in rates} == rates
    networks = {"protocols": ("rded",), "networks": ("vgg11", "alexnet"), "rded_learning_rates": {"vgg11": 0.5}}
    changed = Evaluate.model_validate(networks)
    assert [learning_rate_for(changed, name) for name in ("vgg11", "alexnet")] == [0.5, 1e-4]


def test_train_takes_the_learning_rate_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rded, "loss", lambda network, *rest: network.bias.sum())
    network, images = nn.Linear(1, 1), (torch.zeros(1, 3, 8, 8), torch.zeros(1))
    nn.init.zeros_(network.bias)
    options = {"epochs": 300, "seed": 0, "ipc": 1, "num_classes": 1, "teacher": nn.Identity()}
    next(rded.train(network, images, SETTINGS, name="mobilenet_v2", **options))
    assert network.bias.item() == pytest.approx(-2.5e-3, rel=1e-4)  # the first step of Adam


def test_epochs_for_is_300_unless_set() -> None:
    assert epochs_for(Evaluate(), 10, 10) == 300
    assert epochs_for(Evaluate(epochs=7), 10, 10) == 7
    assert epochs_for(Evaluate(protocols=("rded",), epochs=7, rded_epochs=5), 10, 10) == 5
    assert epochs_for(Evaluate(protocols=("rded",), rded_epochs=5, full_epochs=4), 0, 10) == 4


@pytest.mark.parametrize(
    ("ipc", "classes", "batch"),
    [
        *((1, 10, 10), (5, 10, 10), (10, 10, 50), (20, 10, 50), (50, 10, 100), (200, 10, 100), (50, 99, 100)),
        *((1, 100, 20), (10, 100, 100), (10, 200, 100), (50, 1000, 200)),
        *((1, 5, 5), (10, 3, 30)),
    ],
)
def test_batch_size_for_follows_ipc_and_classes(ipc: int, classes: int, batch: int) -> None:
    assert batch_size_for(SETTINGS, ipc, classes, ipc * classes) == batch


def test_batch_size_for_with_settings_and_full_split() -> None:
    tiny = Evaluate(protocols=("rded",), rded_batch_size=100)
    assert batch_size_for(tiny, 50, 200, 10_000) == 100
    assert batch_size_for(tiny, 1, 10, 10) == 10
    assert batch_size_for(SETTINGS, 0, 10, 50_000) == 100


def test_decay_groups_leave_out_biases_and_norms() -> None:
    network = convnet()
    decays, stays = decay_groups(network)
    assert (decays["weight_decay"], stays["weight_decay"]) == (0.01, 0.0)
    named = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {named[id(p)] for p in decays["params"]} == {"0.0.weight", "1.0.weight", "2.0.weight", "4.weight"}
    assert len(decays["params"]) + len(stays["params"]) == len(named) == 4 * 2 + 3 * 2


def test_train_takes_steps_of_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's first step has the length of the learning rate, whatever the gradient's size; weight decay is added."""
    monkeypatch.setattr(rded, "loss", lambda network, *rest: 5 * network.weight.sum() + 5 * network.bias.sum())
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, 2.0)
    nn.init.constant_(network.bias, 2.0)
    images = (torch.zeros(1, 3, 8, 8), torch.zeros(1))
    next(rded.train(network, images, SETTINGS, epochs=300, seed=0, ipc=1, num_classes=1, teacher=nn.Identity()))
    assert network.weight.item() == pytest.approx(2 - 1e-3 - 1e-3 * 0.01 * 2, abs=1e-6)
    assert network.bias.item() == pytest.approx(2 - 1e-3, abs=1e-6)


def test_train_joins_a_single_last_image_to_the_batch_before(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def record_size(network: nn.Linear, teacher: object, pixels: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(pixels))
        return network.weight.sum()

    monkeypatch.setattr(rded, "loss", record_size)
    settings = SETTINGS.model_copy(update={"rded_epochs": 1})
    images = (torch.zeros(21, 3, 8, 8), torch.zeros(21))
    (epoch,) = rded.train(
        nn.Linear(1, 1), images, settings, epochs=1, seed=0, ipc=7, num_classes=3, teacher=nn.Identity()
    )
    assert epoch.number == 1
    assert sizes == [10, 11]


@pytest.mark.parametrize(
    ("epochs", "rates"),
    [
        (300, {0: 1e-3, 1: 9.9999315e-4, 150: 8.5355339e-4, 299: 5.0261797e-4}),
        (500, {0: 1e-3, 250: 8.5355339e-4, 499: 5.0157079e-4}),
    ],
)
def test_train_has_the_released_learning_rate_in_every_epoch(
    epochs: int, rates: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RDED's LambdaLR, 0.5 (1 + cos(pi e / 2E)) of 1e-3; the numbers were computed once from it."""
    made: list[torch.optim.AdamW] = []
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **k: made.append(adamw(*a, **k)) or made[0])
    monkeypatch.setattr(rded, "loss", lambda network, *rest: network.weight.sum())
    images = (torch.zeros(3, 3, 1, 1), torch.zeros(3))
    trained = rded.train(
        nn.Linear(1, 1), images, SETTINGS, epochs=epochs, seed=0, ipc=1, num_classes=3, teacher=nn.Identity()
    )
    measured = [[group["lr"] for group in made[0].param_groups] for _ in trained]
    assert len(measured) == epochs
    assert all(first == second for first, second in measured)  # with and without weight decay
    assert {epoch: measured[epoch][0] for epoch in rates} == pytest.approx(rates)
    assert all(one[0] > following[0] for one, following in pairwise(measured))


def test_batch_size_for_ipc_1_10_50_100_doubles_for_100_and_1000_classes() -> None:
    released = {10: (10, 50, 100, 100), 100: (20, 100, 200, 200), 1000: (20, 100, 200, 200)}
    for classes, sizes in released.items():
        ipcs = (1, 10, 50, 100)
        assert tuple(batch_size_for(SETTINGS, ipc, classes, ipc * classes) for ipc in ipcs) == sizes
