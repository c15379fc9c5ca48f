"""The minimax protocol: training with hard labels, as MinimaxDiffusion evaluates sets."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vlcp_ray.models.networks import NETWORKS
from vlcp_ray.protocols.protocol import Protocol, steps_per_epoch

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vlcp_ray.protocols.labelled_images import Split
    from vlcp_ray.protocols.training import Epoch
    from vlcp_ray.stages.evaluate import Evaluate


@dataclass(frozen=True)
class Recipe:
    """Constants of the protocol, as published in MinimaxDiffusion's code.

    Args:
        momentum: of SGD.
        weight_decay: of SGD, up to `many_classes` and beyond.
        learning_rate: of the first epoch, up to `many_classes` and beyond.
        batch_size: images per step, up to `many_classes` and beyond.
        gamma: factor of the learning rate at 2/3 of the epochs and again at 5/6.
        epochs: training epochs as (largest ipc, epochs).
        epochs_beyond: training epochs for a larger ipc than those of the table.
        fewer_epochs: number of classes with which the epochs are reduced by a third; neither with fewer nor with more.
        many_classes: number of classes beyond which the second of each two values holds.
        crop_scale: the smallest and the largest share of the image's area that a crop covers.
        jitter: largest change of brightness, contrast and saturation, as a fraction of 1.
        lighting: standard deviation of the PCA lighting.
    """

    momentum: float = 0.9
    weight_decay: tuple[float, float] = (5e-4, 1e-4)
    learning_rate: tuple[float, float] = (0.01, 0.1)
    batch_size: tuple[int, int] = (64, 128)
    gamma: float = 0.2
    epochs: tuple[tuple[int, int], ...] = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
    epochs_beyond: int = 300
    fewer_epochs: int = 100
    many_classes: int = 100
    crop_scale: tuple[float, float] = (0.5, 1.0)
    jitter: float = 0.4
    lighting: float = 0.1


RECIPE: Final = Recipe()


def epochs_for(settings: "Evaluate", ipc: int, num_classes: int) -> int:
    """Return the number of training epochs: that of the settings, or else that of the protocol's table.

    Args:
        settings: `epochs` and `full_epochs`.
        ipc: images per class; 0 for the full train split.
        num_classes: with exactly 100 classes the table's number is reduced by a third and rounded down to hundreds.
    """
    if ipc == 0:
        return settings.full_epochs
    if settings.epochs is not None:
        return settings.epochs
    epochs = next((epochs for limit, epochs in RECIPE.epochs if ipc <= limit), RECIPE.epochs_beyond)
    return epochs * 2 // 3 // 100 * 100 if num_classes == RECIPE.fewer_epochs else epochs


def batch_size_for(settings: "Evaluate", ipc: int, num_classes: int, images: int) -> int:
    """Return the images of a step: that of the settings, or else that of the protocol.

    Args:
        settings: `batch_size`.
        num_classes: with more than 100 classes the steps are larger.
        ipc, images: unused; other protocols need them.
    """
    return settings.batch_size or RECIPE.batch_size[int(num_classes > RECIPE.many_classes)]


def learning_rate_at(epoch: int, epochs: int, base: float) -> float:
    """Return the learning rate of an epoch, counted from 0: divided by 5 at 2/3 of the epochs and again at 5/6."""
    return base * RECIPE.gamma ** bisect_right((2 * epochs // 3, 5 * epochs // 6), epoch)


def train(
    network: "nn.Module",
    images: "Split",
    settings: "Evaluate",
    *,
    epochs: int,
    seed: int,
    name: str = "",
    ipc: int = 0,
    num_classes: int = 0,
    teacher: "nn.Module | None" = None,
    augment: bool = True,
) -> Iterator["Epoch"]:
    """Train with hard labels and yield each epoch when it ends.

    Args:
        network: changed in place.
        images: the training set, on the network's device.
        settings: batch size and learning rate (None: the protocol's), and flip.
        epochs: number of epochs.
        seed: of the order of the images and of their augmentation.
        name: of the network; one with batch norm gets no batch of a single image.
        num_classes: with more than 100, batches, learning rate and weight decay are others.
        ipc, teacher: unused; other protocols need them.
        augment: whether the images are augmented and mixed.
    """
    import torch

    from vlcp_ray.protocols import training

    generator = torch.Generator().manual_seed(seed)
    which = int(num_classes > RECIPE.many_classes)
    learning_rate = settings.learning_rate or RECIPE.learning_rate[which]
    batch_size = batch_size_for(settings, ipc, num_classes, len(images[1]))
    optimizer = torch.optim.SGD(
        network.parameters(), learning_rate, RECIPE.momentum, weight_decay=RECIPE.weight_decay[which], fused=True
    )
    min_batch = NETWORKS[name].min_batch("instance") if name else 1
    steps = steps_per_epoch(len(images[1]), batch_size, min_batch)
    yield from training.train(
        optimizer,
        images,
        lambda pixels, labels: loss(network, pixels, labels, generator, settings.flip, augment),
        lambda step: learning_rate_at(step // steps, epochs, learning_rate),
        epochs=epochs,
        batch_size=batch_size,
        generator=generator,
        min_batch=min_batch,
    )


def loss(
    network: "nn.Module",
    pixels: "Tensor",
    labels: "Tensor",
    generator: "torch.Generator",
    flip: bool,
    augment: bool = True,
) -> "Tensor":
    """Compute the cross entropy of one augmented batch, mixed by CutMix: r CE(own) + (1 - r) CE(pasted).

    Args:
        network: the classifier.
        pixels: (n, 3, s, s) uint8.
        labels: (n,) int64 on the same device.
        generator: a CPU generator.
        flip: whether half of the views are mirrored.
        augment: without it the images are neither augmented nor mixed.
    """
    from torch.nn.functional import cross_entropy

    from vlcp_ray.protocols import augment as views_of

    if not augment:
        return cross_entropy(network(views_of.normalise(pixels)), labels)
    views = views_of.augment(pixels, generator, flip, RECIPE.crop_scale, RECIPE.jitter, RECIPE.lighting)
    mixed, own, pasted, share = views_of.cutmix(views, labels, generator)
    logits = network(mixed)
    return share * cross_entropy(logits, own) + (1 - share) * cross_entropy(logits, pasted)


PROTOCOL: Final = Protocol(
    "minimax",
    "hard labels, as MinimaxDiffusion evaluates sets",
    labels="hard",
    norm="instance",
    epochs=epochs_for,
    batch_size=batch_size_for,
    resize=lambda input_size: input_size,
    training="vlcp_ray.protocols.minimax:train",
    recipe=RECIPE,
    settings=("batch_size", "learning_rate"),
    trains_full=True,
)
