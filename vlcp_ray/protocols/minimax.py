"""Knows the minimax protocol: training with hard labels, as MinimaxDiffusion judges sets (METHOD 3.1)."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlcp_ray.augment import augment, cutmix
from vlcp_ray.config import Evaluate
from vlcp_ray.protocols import training
from vlcp_ray.protocols.images import Split

MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 5e-4
GAMMA: Final = 0.2


def learning_rate_at(epoch: int, epochs: int, base: float) -> float:
    """The learning rate of an epoch, counted from 0: a fifth from 2/3 of the epochs on, and again from 5/6 on."""
    return base * GAMMA ** bisect_right((2 * epochs // 3, 5 * epochs // 6), epoch)


def train(network: nn.Module, images: Split, settings: Evaluate, epochs: int, seed: int) -> Iterator[int]:
    """Train for an epoch at a time and yield its number, from 1."""
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


def loss(network: nn.Module, pixels: Tensor, labels: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """The cross entropy of one batch of new views, mixed by CutMix: r CE(own) + (1 - r) CE(pasted).

    Args:
        pixels: (n, 3, s, s) uint8.
        labels: (n,) int64 on the same device.
        generator: a CPU generator.
    """
    views = augment(pixels, generator, flip)
    mixed, own, pasted, share = cutmix(views, labels, generator)
    logits = network(mixed)
    return share * cross_entropy(logits, own) + (1 - share) * cross_entropy(logits, pasted)
