"""Train the teacher on real images with hard labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlcp_ray.models.classifiers import global_seed
from vlcp_ray.models.teacher import build_teacher
from vlcp_ray.protocols.labelled_images import LabelledImages, check_split, to_device
from vlcp_ray.protocols.metrics import accuracy, batches_for, guesses, predict
from vlcp_ray.protocols.protocol import should_validate
from vlcp_ray.protocols.teacher_training import train_epochs
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.teach import Teach

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
    """Train a network, one of ours with batch norm, on real images with hard labels (see `train_epochs`).

    The result depends on the images, their order, the settings and the seed; global random state is neither used nor
    changed.

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
    trained = train_epochs(network, images, settings, generator)
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
