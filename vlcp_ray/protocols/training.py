"""The training loop of the protocols and of the teacher."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vlcp_ray.protocols.labelled_images import Split


class Epoch(NamedTuple):
    """An epoch that has ended.

    Args:
        number: from 1.
        loss: mean of its steps, a scalar on the device of the images.
    """

    number: int
    loss: Tensor


Loss = Callable[[Tensor, Tensor], Tensor]  # pixels (n, 3, s, s) uint8 and labels (n,) -> a scalar


def train(
    optimizer: torch.optim.Optimizer,
    images: Split,
    loss: Loss,
    learning_rate: Callable[[int], float],
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    min_batch: int = 1,
) -> Iterator[Epoch]:
    """Train on all images in a new random order each epoch, and yield each epoch when it ends.

    Args:
        optimizer: of the parameters that are trained; its learning rate is set at every step.
        images: pixels and labels.
        loss: a function of the pixels and labels of a batch; it holds the network and samples from the same generator.
        learning_rate: a function of the step, counted from 0 over the whole training.
        epochs: number of epochs.
        batch_size: images per step.
        generator: a CPU generator, for the order of the images.
        min_batch: smallest size of a batch; a smaller last batch is joined to the one before it.
    """
    step = 0
    for epoch in range(epochs):
        order = torch.randperm(len(images[1]), generator=generator).to(images[1].device)
        losses = []
        for batch in batches(order, batch_size, min_batch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            value = loss(images[0][batch], images[1][batch])
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(value.detach())
            step += 1
        yield Epoch(epoch + 1, torch.stack(losses).mean())


def batches(order: Tensor, size: int, min_batch: int = 1) -> list[Tensor]:
    """Split (n,) into batches of `size`; join a last batch of fewer than `min_batch` to the one before it."""
    parts = list(torch.split(order, size))
    if len(parts[-1]) < min_batch:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
