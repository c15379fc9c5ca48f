"""Tests of the protocol with stored soft labels: what the network is trained towards, and that it is mixed."""

import pytest
import torch
from torch import nn

from tests.labelled_digits import digits
from vlcp_ray.config import Evaluate
from vlcp_ray.protocols import rded, rded_stored
from vlcp_ray.protocols.augment import augment_without_jitter, cutmix
from vlcp_ray.protocols.labelled_images import to_device

SETTINGS = Evaluate(protocols=("rded-stored",), networks=("ConvNet-3",), input_size=16, temperature=4.0)


class Fixed(nn.Module):
    """Outputs that are a function of an image's mean."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-3, 3, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None] * self.weight


@pytest.mark.parametrize("factor", [1, 2])
def test_loss_equals_a_computation_by_hand(factor: int) -> None:
    settings = SETTINGS.model_copy(update={"factor": factor})
    pixels, _ = to_device(digits(0, 8), "cpu")
    rows, network = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6]), Fixed()
    logits = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    found = rded_stored.loss(network, logits.softmax(1), pixels, rows, torch.Generator().manual_seed(3), settings)
    again = torch.Generator().manual_seed(3)
    mixed, own, pasted, share = cutmix(
        augment_without_jitter(pixels, again, True, (1 / factor, 1.0), factor), rows, again
    )
    soft = (logits / 4).softmax(1)  # of the outputs at temperature 4
    target, student = share * soft[own] + (1 - share) * soft[pasted], (network(mixed) / 4).log_softmax(1)
    by_hand = (target * (target.log() - student)).sum() / 8
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_loss_of_a_probability_of_zero_is_finite() -> None:
    pixels, _ = to_device(digits(0, 4), "cpu")
    stored = torch.eye(10)[:4]
    loss = rded_stored.loss(Fixed(), stored, pixels, torch.arange(4), torch.Generator().manual_seed(0), SETTINGS)
    assert bool(torch.isfinite(loss))


def test_train_labels_each_image_once_before_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(
        network: nn.Module, stored: torch.Tensor, pixels: torch.Tensor, rows: torch.Tensor, *_: object
    ) -> object:
        seen.extend(zip(pixels, stored[rows], strict=True))
        return network.weight.sum()

    monkeypatch.setattr(rded_stored, "loss", record)
    teacher, images = Fixed(), to_device(digits(0, 21), "cpu")
    epochs = list(rded_stored.train(Fixed(), images, SETTINGS, epochs=2, seed=0, ipc=7, num_classes=3, teacher=teacher))
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert len(seen) == 2 * 21
    from vlcp_ray.models.teacher import soft_labels

    for pixels, label in seen[:5]:
        expected = soft_labels(teacher, pixels[None].numpy(), "cpu")[0]
        torch.testing.assert_close(label, torch.from_numpy(expected))


def test_stored_labels_share_the_recipe_of_rded() -> None:
    ours, theirs = rded_stored.PROTOCOL, rded.PROTOCOL
    assert (ours.recipe, ours.norm, ours.min_batch, ours.unvalidated) == (
        theirs.recipe,
        theirs.norm,
        theirs.min_batch,
        theirs.unvalidated,
    )
    assert (ours.labels, ours.needs_teacher, ours.trains_full) == ("stored", True, False)
