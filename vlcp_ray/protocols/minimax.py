"""The minimax protocol: training with hard labels, as MinimaxDiffusion evaluates sets (METHOD 3.1)."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from vlcp_ray.protocols.protocol import Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vlcp_ray.protocols.labelled_images import Split
    from vlcp_ray.stages.evaluate import Evaluate

MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 5e-4
GAMMA: Final = 0.2

#: Training epochs as (largest ipc, epochs).
_EPOCHS: Final = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
_EPOCHS_BEYOND: Final = 300
_MANY_CLASSES: Final = 100


def epochs_for(settings: "Evaluate", ipc: int, num_classes: int) -> int:
    """Return the number of training epochs: that of the settings, or else that of the protocol's table.

    Args:
        settings: `epochs` and `full_epochs`.
        ipc: images per class; 0 for the full train split.
        num_classes: with 100 classes or more, the table's number is reduced by a third and rounded down to hundreds.
    """
    if ipc == 0:
        return settings.full_epochs
    if settings.epochs is not None:
        return settings.epochs
    epochs = next((epochs for limit, epochs in _EPOCHS if ipc <= limit), _EPOCHS_BEYOND)
    return epochs if num_classes < _MANY_CLASSES else epochs * 2 // 3 // 100 * 100


def learning_rate_at(epoch: int, epochs: int, base: float) -> float:
    """Return the learning rate of an epoch, counted from 0: divided by 5 at 2/3 of the epochs and again at 5/6."""
    return base * GAMMA ** bisect_right((2 * epochs // 3, 5 * epochs // 6), epoch)


def train(
    network: "nn.Module",
    images: "Split",
    settings: "Evaluate",
    *,
    epochs: int,
    seed: int,
    ipc: int = 0,
    num_classes: int = 0,
    teacher: "nn.Module | None" = None,
) -> Iterator[int]:
    """Train with hard labels and yield the number of each epoch, from 1, when it ends.

    Args:
        network: changed in place.
        images: the training set, on the network's device.
        settings: batch size, learning rate and flip.
        epochs: number of epochs.
        seed: of the order of the images and of their augmentation.
        ipc, num_classes, teacher: unused; other protocols need them.
    """
    import torch

    from vlcp_ray.protocols import training

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        network.parameters(), settings.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
    )
    steps = training.steps_per_epoch(len(images[1]), settings.batch_size)
    yield from training.train(
        optimizer,
        images,
        lambda pixels, labels: loss(network, pixels, labels, generator, settings.flip),
        lambda step: learning_rate_at(step // steps, epochs, settings.learning_rate),
        epochs=epochs,
        batch_size=settings.batch_size,
        generator=generator,
    )


def loss(
    network: "nn.Module", pixels: "Tensor", labels: "Tensor", generator: "torch.Generator", flip: bool
) -> "Tensor":
    """Compute the cross entropy of one augmented batch, mixed by CutMix: r CE(own) + (1 - r) CE(pasted).

    Args:
        network: the classifier.
        pixels: (n, 3, s, s) uint8.
        labels: (n,) int64 on the same device.
        generator: a CPU generator.
        flip: whether half of the views are mirrored.
    """
    from torch.nn.functional import cross_entropy

    from vlcp_ray.protocols.augment import augment, cutmix

    views = augment(pixels, generator, flip)
    mixed, own, pasted, share = cutmix(views, labels, generator)
    logits = network(mixed)
    return share * cross_entropy(logits, own) + (1 - share) * cross_entropy(logits, pasted)


PROTOCOL: Final = Protocol(
    "minimax",
    "hard labels, as MinimaxDiffusion evaluates sets",
    labels="hard",
    norm="instance",
    epochs=epochs_for,
    resize=lambda input_size: input_size,
    training="vlcp_ray.protocols.minimax:train",
    settings=("batch_size", "learning_rate"),
    trains_full=True,
)
