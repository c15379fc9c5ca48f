"""Measure how difficult training images are, in the first epochs of a network's training."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vlcp_ray.models.classifiers import global_seed
from vlcp_ray.models.teacher import build_teacher, soft_labels
from vlcp_ray.protocols.labelled_images import LabelledImages, check_split, to_device
from vlcp_ray.protocols.teacher_training import train_epochs
from vlcp_ray.schemas import conform, with_column
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.rank import DIFFICULTY
from vlcp_ray.stages.teach import Teach


class Forgetting:
    """Count how often each image goes from right to wrong, as training sees it (Toneva et al. 2019).

    Args:
        targets: (n,) the label of every image.
    """

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self.is_right = torch.zeros_like(targets, dtype=torch.bool)
        self.was_right, self.count = self.is_right.clone(), torch.zeros_like(targets)

    def observe(self, rows: Tensor, logits: Tensor) -> None:
        """Take the logits (k, classes) of k images, named by their row numbers, none of them twice."""
        right = logits.argmax(1) == self.targets[rows]
        self.count[rows] += self.is_right[rows] & ~right
        self.is_right[rows] = right
        self.was_right[rows] |= right

    def counts(self) -> Tensor:
        """Return (n,) counts, -1 for images that were never right."""
        return torch.where(self.was_right, self.count, -1)


def measure_difficulty(
    identities: pa.Table,
    train: LabelledImages,
    class_names: Sequence[str],
    settings: Teach,
    epochs: int,
    network: int,
    device: str,
) -> pa.Table:
    """Train one network for the first epochs of the teacher's training, and return the rows of DIFFICULTY.

    EL2N (Paul et al. 2021) is measured at the end, on images without augmentation; forgetting on the augmented images
    of the training steps. The rows depend on the images, their order, the settings and the number of the network.

    Args:
        identities: image_id, label and class_name of the images, in their order.
        train: pixels of (settings.input_size)^2.
        class_names: the class of each label.
        settings: network and training.
        epochs: after which the training stops.
        network: number of the network, which its first weights, order and augmentation follow from.
        device: torch device.

    Raises:
        ValueError: the set has images of another size, or the network diverges.
    """
    check_split(train, "rank: the train set", settings.input_size, class_names)
    weights, steps = (seed_for(network, "rank", purpose) for purpose in ("weights", "steps"))
    trained = build_teacher(settings, len(class_names), settings.input_size, weights).to(device)
    trained = trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, generator = to_device(train, device), torch.Generator().manual_seed(steps)
    forgetting = Forgetting(images[1])
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        global_seed(seed_for(network, "rank", "dropout"), device),
    ):
        for _ in islice(train_epochs(trained, images, settings, generator, forgetting.observe), epochs):
            pass
        errors = soft_labels(trained, train.pixels, device)
    errors[np.arange(len(errors)), train.labels] -= 1
    el2n = np.linalg.norm(errors, axis=1)
    if not np.isfinite(el2n).all():
        raise ValueError("rank: the network diverges; lower teach.learning_rate")
    table = with_column(identities, "network", pa.array([network] * len(el2n), pa.int32()))
    table = with_column(table, "el2n", pa.array(el2n))
    return conform(with_column(table, "forgettings", pa.array(forgetting.counts().cpu().numpy())), DIFFICULTY)
