"""Knows the rded protocol: training with the soft labels of a teacher, as RDED judges sets (METHOD 3.2)."""

import math
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax

from vlcp_ray.augment import augment_plainly, cutmix
from vlcp_ray.config import Evaluate
from vlcp_ray.protocols import training
from vlcp_ray.protocols.images import Split
from vlcp_ray.protocols.pace import rded_epochs

LEARNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 0.01

#: The protocol's batch: from this ipc on, so many images.
_BATCH: Final = ((50, 100), (10, 50), (1, 10))
_MANY_CLASSES: Final = 100
_UNCHECKED: Final = 0.8
_LEAST: Final = 2  # batch norm cannot learn from one image whose features have shrunk to a single place


def batch_size_for(settings: Evaluate, ipc: int, num_classes: int, images: int) -> int:
    """The images of a step: by the settings where they say it, else by the protocol's table, never more than there are.

    Args:
        ipc: images per class; 0, the full train split, counts as many.
        images: in the set; ipc x classes, or all of the train split.
    """
    size = next((size for limit, size in _BATCH if ipc >= limit), _BATCH[0][1])
    if num_classes >= _MANY_CLASSES:
        size *= 2
    return min(settings.rded_batch_size or size, images)


def learning_rate_at(epoch: int, epochs: int) -> float:
    """The learning rate of an epoch, counted from 0: half a cosine that ends at a half, not at 0."""
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * epoch / (2 * epochs)))


def is_check(epoch: int, epochs: int, checks: int) -> bool:
    """Whether the network is tested after this epoch, counted from 1: at the pace of `checks`, in the last fifth."""
    return (training.is_check(epoch, epochs, checks) and epoch > _UNCHECKED * epochs) or epoch == epochs


def train(
    network: nn.Module, teacher: nn.Module, images: Split, settings: Evaluate, ipc: int, num_classes: int, seed: int
) -> Iterator[int]:
    """Train for an epoch at a time and yield its number, from 1. The labels of the images are not looked at.

    Args:
        teacher: in eval mode, on the images' device, with `num_classes` outputs in the order of the class names.
        ipc: images per class, 0 for the full train split.
    """
    generator = torch.Generator().manual_seed(seed)
    epochs, count = rded_epochs(settings, ipc), len(images[1])
    batch_size = batch_size_for(settings, ipc, num_classes, count)
    steps = training.steps_per_epoch(count, batch_size, _LEAST)
    yield from training.train(
        torch.optim.AdamW(decay_groups(network), LEARNING_RATE, fused=True),
        images,
        lambda pixels, labels: loss(network, teacher, pixels, labels, generator, settings),
        lambda step: learning_rate_at(step // steps, epochs),
        epochs=epochs,
        batch_size=batch_size,
        generator=generator,
        least=_LEAST,
    )


def decay_groups(network: nn.Module) -> list[dict[str, Any]]:
    """The parameters as two groups for an optimizer: biases and norms, of one dimension, do not decay."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def loss(
    network: nn.Module,
    teacher: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    settings: Evaluate,
) -> Tensor:
    """The loss of one batch of new views, mixed by CutMix, against what the teacher says of the mixed images.

    Args:
        pixels: (n, 3, s, s) uint8.
        labels: (n,) on the same device; only carried along.
        generator: a CPU generator.
    """
    views = augment_plainly(pixels, generator, settings.flip, (1 / settings.factor, 1.0), settings.factor)
    mixed = cutmix(views, labels, generator)[0]
    with torch.no_grad():
        told = teacher(mixed)
    return soft_label_loss(network(mixed), told, settings.temperature)


def soft_label_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)), the mean over the batch, not multiplied by T^2.

    Args:
        student: logits (n, classes).
        teacher: logits (n, classes).
    """
    return kl_div(
        log_softmax(student / temperature, dim=1), softmax(teacher / temperature, dim=1), reduction="batchmean"
    )
