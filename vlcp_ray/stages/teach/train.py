"""Train the teacher on real images with hard labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlcp_ray.models.classifiers import global_seed
from vlcp_ray.models.teacher import build_teacher
from vlcp_ray.protocols import training
from vlcp_ray.protocols.augment import augment_without_jitter, random_shift
from vlcp_ray.protocols.labelled_images import LabelledImages, check_split, to_device
from vlcp_ray.protocols.metrics import accuracy, batches_for, guesses, predict
from vlcp_ray.protocols.protocol import should_validate, steps_per_epoch
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.teach import RECIPE, Teach

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class TrainedTeacher:
    """A trained teacher: its weights on the CPU, and its accuracies on val but for `train_top1`, as fractions of 1."""

    state: State
    class_names: tuple[str, ...]
    train_top1: float
    top1: float
    top5: float
    curve: tuple[float, ...]


def train_teacher(
    train: LabelledImages, val: LabelledImages, class_names: Sequence[str], settings: Teach, seed: int, device: str
) -> TrainedTeacher:
    """Train a network, one of ours with batch norm, on real images with hard labels.

    SGD with Nesterov momentum 0.9 and one cycle of the learning rate, which needs few epochs; images of up to 64 pixels
    are shifted by up to an eighth of their side, larger ones cropped (scale 0.08 to 1, as for ImageNet), and flipped if
    `settings.flip`. The result depends on the images, their order, the settings and the seed; global random state is
    neither used nor changed.

    Args:
        train: pixels of (settings.input_size)^2.
        val: of the same size; only measured, the returned weights are those after the last epoch.
        class_names: the class of each label.
        settings: network, epochs, batch size, learning rate, flip and precision.
        seed: of the initial weights, the order of the images and their augmentation.
        device: torch device.

    Raises:
        ValueError: a set is empty, has images of another size, or labels without a class name; or the network learned
            nothing.
    """
    for split, name in ((train, "train"), (val, "val")):
        check_split(split, f"teach: the {name} set", settings.input_size, class_names)
    network = build_teacher(settings, len(class_names), settings.input_size, seed_for(seed, "teach", "weights")).to(
        device
    )
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, val_labels = to_device(train, device), torch.tensor(val.labels, device=device)
    generator = torch.Generator().manual_seed(seed_for(seed, "teach", "steps"))
    steps = settings.epochs * steps_per_epoch(len(images[1]), settings.batch_size, RECIPE.min_batch)
    optimizer = torch.optim.SGD(  # `training.train` sets the learning rate at every step
        network.parameters(), 0.0, RECIPE.momentum, weight_decay=RECIPE.weight_decay, nesterov=True, fused=True
    )
    trained = training.train(
        optimizer,
        images,
        lambda pixels, labels: _loss(network, pixels, labels, generator, settings),
        lambda step: learning_rate_at(step, steps, settings.learning_rate),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        generator=generator,
        min_batch=RECIPE.min_batch,
    )
    accuracies, batches, loss = [], batches_for(device), math.nan
    predicted = val_labels[:, None]
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        global_seed(seed_for(seed, "teach", "dropout"), device),
    ):
        for epoch in trained:
            if should_validate(epoch.number, settings.epochs, settings.validations):
                predicted, loss = predict(network, val.pixels, device, batches), float(epoch.loss)
                accuracies.append(accuracy(predicted, val_labels))
    on_train = predict(network, train.pixels, device, batches)
    train_top1, _ = accuracy(on_train, images[1])
    if not math.isfinite(loss) or (guesses(on_train[:, 0], images[1]) and guesses(predicted[:, 0], val_labels)):
        raise ValueError(
            f"teach: the teacher did not learn: after the last epoch its loss is {loss:.3g}, its top-1 on the training "
            f"images {train_top1:.1%} and on val {accuracies[-1][0]:.1%}, as by guessing; raise teach.epochs, lower "
            "teach.learning_rate, or take another teach.network"
        )
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    return TrainedTeacher(state, tuple(class_names), train_top1, *accuracies[-1], tuple(top1 for top1, _ in accuracies))


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


def _loss(network: nn.Module, pixels: Tensor, labels: Tensor, generator: torch.Generator, settings: Teach) -> Tensor:
    if settings.input_size <= RECIPE.largest_shifted:
        views = random_shift(pixels, generator, settings.flip, settings.input_size // RECIPE.shift)
    else:
        views = augment_without_jitter(pixels, generator, settings.flip, RECIPE.crop_scale)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=settings.mixed_precision == "bf16"):
        logits = network(views.contiguous(memory_format=torch.channels_last))
    return cross_entropy(logits.float(), labels)
