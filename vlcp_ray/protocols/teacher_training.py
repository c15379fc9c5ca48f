"""The training of a teacher: SGD with one cycle of the learning rate, on shifted or cropped real images."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlcp_ray.protocols import training
from vlcp_ray.protocols.augment import augment_without_jitter, random_shift
from vlcp_ray.protocols.labelled_images import Split
from vlcp_ray.protocols.protocol import steps_per_epoch
from vlcp_ray.protocols.training import Epoch
from vlcp_ray.stages.teach import RECIPE, Teach

#: Takes the row numbers of a batch and their logits (n, classes), before the step.
Observe = Callable[[Tensor, Tensor], None]


def train_epochs(
    network: nn.Module,
    images: Split,
    settings: Teach,
    generator: torch.Generator,
    observe: Observe = lambda rows, logits: None,
) -> Iterator[Epoch]:
    """Train a network on real images with hard labels, and yield each epoch when it ends.

    SGD with Nesterov momentum 0.9 and one cycle of the learning rate over `settings.epochs`, which needs few epochs;
    images of up to 64 pixels are shifted by up to an eighth of their side, larger ones cropped (scale 0.08 to 1, as for
    ImageNet), and flipped if `settings.flip`.

    Args:
        network: on the device of the images, in channels-last format; changed in place.
        images: pixels of (settings.input_size)^2, and labels.
        settings: epochs, batch size, learning rate, flip and precision.
        generator: of the order of the images and of their augmentation, on the CPU.
        observe: sees the logits of every training step.
    """
    steps = settings.epochs * steps_per_epoch(len(images[1]), settings.batch_size, RECIPE.min_batch)
    optimizer = torch.optim.SGD(  # `training.train` sets the learning rate at every step
        network.parameters(), 0.0, RECIPE.momentum, weight_decay=RECIPE.weight_decay, nesterov=True, fused=True
    )

    def loss(pixels: Tensor, rows: Tensor) -> Tensor:
        return _loss(network, pixels, images[1][rows], generator, settings, partial(observe, rows))

    return training.train(
        optimizer,
        (images[0], torch.arange(len(images[1]), device=images[1].device)),
        loss,
        lambda step: learning_rate_at(step, steps, settings.learning_rate),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        generator=generator,
        min_batch=RECIPE.min_batch,
    )


def learning_rate_at(step: int, steps: int, highest: float) -> float:
    """Return the learning rate of one cycle: a linear rise over a fifth of the steps, then a cosine decay to near 0.

    Args:
        step: from 0 to steps - 1.
        steps: of the whole training.
        highest: the maximum.
    """
    warm_up = RECIPE.warm_up * steps
    position = step + 0.5
    if position < warm_up:
        return highest * position / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (position - warm_up) / (steps - warm_up)))


def _loss(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    settings: Teach,
    observe: Callable[[Tensor], None],
) -> Tensor:
    if settings.input_size <= RECIPE.largest_shifted:
        views = random_shift(pixels, generator, settings.flip, settings.input_size // RECIPE.shift)
    else:
        views = augment_without_jitter(pixels, generator, settings.flip, RECIPE.crop_scale)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=settings.mixed_precision == "bf16"):
        logits = network(views.contiguous(memory_format=torch.channels_last))
    observe(logits.detach().float())
    return cross_entropy(logits.float(), labels)
