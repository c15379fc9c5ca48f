"""The rded protocol: training with the soft labels of a teacher, as RDED evaluates sets."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vlcp_ray.protocols.protocol import Protocol, steps_per_epoch

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vlcp_ray.protocols.labelled_images import Split
    from vlcp_ray.protocols.training import Epoch, Loss
    from vlcp_ray.stages.evaluate import Evaluate


@dataclass(frozen=True)
class Recipe:
    """Constants of the protocol, as published in RDED's code.

    Args:
        learning_rate: of the first epoch, of networks that are not in LEARNING_RATES.
        weight_decay: of AdamW, for weights of more than one dimension.
        epochs: training epochs.
        batch_sizes: images per training step as (smallest ipc, images), the largest ipc first.
        many_classes: number of classes from which on the batch size is doubled.
        min_batch: a smaller last batch is joined to the one before it: batch norm needs more than one value per
            channel, and deep features have a single pixel.
        largest_crop: the largest share of the image's area that a crop covers; the smallest is 1 / factor.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 300
    batch_sizes: tuple[tuple[int, int], ...] = ((50, 100), (10, 50), (1, 10))
    many_classes: int = 100
    min_batch: int = 2
    largest_crop: float = 1.0


RECIPE: Final = Recipe()
#: The learning rate of the first epoch by network, where RDED's code has another one than the recipe's.
LEARNING_RATES: Final[Mapping[str, float]] = {
    "alexnet": 1e-4,
    "efficientnet_b0": 2e-3,
    "mobilenet_v2": 2.5e-3,
    "swin_v2_t": 1e-4,
    "vgg11": 5e-4,
    "vit_b_16": 1e-4,
}


def batch_size_for(settings: "Evaluate", ipc: int, num_classes: int, images: int) -> int:
    """Return the batch size: that of the settings, or else that of the protocol's table, but at most `images`.

    Args:
        settings: `rded_batch_size`.
        ipc: images per class; 0, the full train split, is treated as the largest ipc of the table.
        num_classes: with 100 classes or more, the table's number is doubled.
        images: number of training images.
    """
    size = next((size for limit, size in RECIPE.batch_sizes if ipc >= limit), RECIPE.batch_sizes[0][1])
    if num_classes >= RECIPE.many_classes:
        size *= 2
    return min(settings.rded_batch_size or size, images)


def learning_rate_for(settings: "Evaluate", name: str) -> float:
    """Return the learning rate of the first epoch: that of the settings, or else RDED's for the network.

    Args:
        settings: `rded_learning_rates`.
        name: of the network.
    """
    return settings.rded_learning_rates.get(name, LEARNING_RATES.get(name, RECIPE.learning_rate))


def learning_rate_at(epoch: int, epochs: int, base: float) -> float:
    """Return the learning rate of an epoch, counted from 0: a cosine decay to half of the first rate, not to 0."""
    return base * 0.5 * (1 + math.cos(math.pi * epoch / (2 * epochs)))


def epochs_for(settings: "Evaluate", ipc: int, num_classes: int) -> int:
    """Return the number of training epochs: that of the settings, the first where there are several, or else 300.

    Args:
        settings: `epochs`, `rded_epochs` and `full_epochs`.
        ipc: images per class; 0 for the full train split.
        num_classes: unused; other protocols need it.
    """
    if ipc == 0:
        return settings.full_epochs
    return settings.rded_epochs[0] if settings.rded_epochs else settings.epochs or RECIPE.epochs


def budgets(settings: "Evaluate") -> tuple[int, ...]:
    """Return the numbers of epochs where the settings list several, and else none."""
    return settings.rded_epochs if settings.rded_epochs and len(settings.rded_epochs) > 1 else ()


def resize_for(input_size: int) -> int:
    """Return the short side of val images: input_size // 7 * 8 (256 for 224), but at least `input_size`."""
    return max(input_size, input_size // 7 * 8)


def train(
    network: "nn.Module",
    images: "Split",
    settings: "Evaluate",
    *,
    epochs: int,
    seed: int,
    name: str = "",
    ipc: int,
    num_classes: int,
    teacher: "nn.Module | None" = None,
    augment: bool = True,
) -> Iterator["Epoch"]:
    """Train with a teacher's soft labels and yield each epoch when it ends.

    The released code runs the student forward once more before each step, in train mode; that does not move the result
    (30 seeds each: 49.3 and 49.2 % top-1) and is left out.

    Args:
        network: changed in place.
        images: the training set, on the network's device; its labels are not used.
        settings: batch size, flip, factor and temperature.
        epochs: number of epochs.
        seed: of the order of the images and of their augmentation.
        name: of the network, for its learning rate.
        ipc: images per class, 0 for the full train split.
        num_classes: number of classes.
        teacher: in eval mode, on the images' device, with `num_classes` outputs in the order of the class names; always
            given (`run_trial` checks it).
        augment: whether the images are augmented and mixed.
    """
    import torch

    assert teacher is not None, "soft labels need a teacher"  # noqa: S101
    generator = torch.Generator().manual_seed(seed)

    def of_batch(pixels: "Tensor", labels: "Tensor") -> "Tensor":
        return loss(network, teacher, pixels, labels, generator, settings, augment)

    yield from train_with(
        of_batch,
        network,
        images,
        settings,
        name=name,
        epochs=epochs,
        generator=generator,
        ipc=ipc,
        num_classes=num_classes,
    )


def train_with(
    loss: "Loss",
    network: "nn.Module",
    images: "Split",
    settings: "Evaluate",
    *,
    name: str,
    epochs: int,
    generator: "torch.Generator",
    ipc: int,
    num_classes: int,
) -> Iterator["Epoch"]:
    """Train by the optimiser, learning rates and batches of the protocol, and yield each epoch when it ends.

    Args:
        loss: a function of the pixels and the second tensor of a batch of `images`.
        generator: of the order of the images.
        network, images, settings, name, epochs, ipc, num_classes: as of `train`.
    """
    import torch

    from vlcp_ray.protocols import training

    count, base = len(images[1]), learning_rate_for(settings, name)
    batch_size = batch_size_for(settings, ipc, num_classes, count)
    steps = steps_per_epoch(count, batch_size, RECIPE.min_batch)
    yield from training.train(
        torch.optim.AdamW(decay_groups(network), base, fused=True),
        images,
        loss,
        lambda step: learning_rate_at(step // steps, epochs, base),
        epochs=epochs,
        batch_size=batch_size,
        generator=generator,
        min_batch=RECIPE.min_batch,
    )


def decay_groups(network: "nn.Module") -> list[dict[str, Any]]:
    """Split the parameters into two groups for an optimizer: without weight decay for biases and norms (1-d)."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": RECIPE.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def loss(
    network: "nn.Module",
    teacher: "nn.Module",
    pixels: "Tensor",
    labels: "Tensor",
    generator: "torch.Generator",
    settings: "Evaluate",
    augment: bool = True,
) -> "Tensor":
    """Compute the loss of one augmented batch, mixed by CutMix, against the teacher's outputs for the mixed images.

    Args:
        network: the student.
        teacher: in eval mode; gets no gradient.
        pixels: (n, 3, s, s) uint8.
        labels: (n,) on the same device; without effect.
        generator: a CPU generator.
        settings: flip, factor and temperature.
        augment: without it the images are neither augmented nor mixed.
    """
    import torch

    from vlcp_ray.protocols.augment import augment_without_jitter, cutmix, normalise

    if augment:
        crop = (1 / settings.factor, RECIPE.largest_crop)
        views = augment_without_jitter(pixels, generator, settings.flip, crop, settings.factor)
        mixed = cutmix(views, labels, generator)[0]
    else:
        mixed = normalise(pixels)
    with torch.no_grad():
        targets = teacher(mixed)
    return soft_label_loss(network(mixed), targets, settings.temperature)


def soft_label_loss(student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """Compute KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch, not multiplied by T^2.

    Args:
        student: logits (n, classes).
        teacher: logits (n, classes).
        temperature: T.
    """
    from torch.nn.functional import kl_div, log_softmax, softmax

    return kl_div(
        log_softmax(student / temperature, dim=1), softmax(teacher / temperature, dim=1), reduction="batchmean"
    )


PROTOCOL: Final = Protocol(
    "rded",
    "a teacher's soft labels of every augmented batch, as RDED evaluates sets",
    labels="teacher",
    norm="batch",
    epochs=epochs_for,
    batch_size=batch_size_for,
    resize=resize_for,
    training="vlcp_ray.protocols.rded:train",
    recipe=RECIPE,
    settings=("temperature", "rded_epochs", "rded_batch_size", "rded_learning_rates"),
    unvalidated=0.8,
    min_batch=RECIPE.min_batch,
    budgets=budgets,
)
