"""The rded-stored protocol: that of rded, but with one soft label per image, which the export of a set has."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vlcp_ray.protocols import rded

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from vlcp_ray.protocols.labelled_images import Split
    from vlcp_ray.protocols.training import Epoch
    from vlcp_ray.stages.evaluate import Evaluate


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
    stored: "npt.NDArray[np.float32] | None" = None,
) -> Iterator["Epoch"]:
    """Train with one soft label per image: the set's own, or else what a teacher says before any augmentation.

    Args:
        network: changed in place.
        images: the training set, on the network's device; its labels are not used.
        settings: batch size, flip, factor and temperature.
        epochs: number of epochs.
        seed: of the order of the images and of their augmentation.
        name: of the network, for its learning rate.
        ipc: images per class, 0 for the full train split.
        num_classes: number of classes.
        teacher: in eval mode, with `num_classes` outputs in the order of the class names; given without `stored`.
        augment: whether the images are augmented and mixed.
        stored: the set's own probabilities (n, classes), in the order of the images.
    """
    import torch

    from vlcp_ray.models.teacher import soft_labels

    generator = torch.Generator().manual_seed(seed)
    pixels, device = images[0], images[0].device
    if stored is None:
        assert teacher is not None, "soft labels need a teacher"  # noqa: S101
        stored = soft_labels(teacher, pixels.cpu().numpy(), str(device))
    of_images = torch.tensor(stored, device=device)

    def of_batch(pixels: "Tensor", rows: "Tensor") -> "Tensor":
        return loss(network, of_images, pixels, rows, generator, settings, augment)

    numbered = (pixels, torch.arange(len(pixels), device=device))
    yield from rded.train_with(
        of_batch,
        network,
        numbered,
        settings,
        name=name,
        epochs=epochs,
        generator=generator,
        ipc=ipc,
        num_classes=num_classes,
    )


def loss(
    network: "nn.Module",
    stored: "Tensor",
    pixels: "Tensor",
    rows: "Tensor",
    generator: "torch.Generator",
    settings: "Evaluate",
    augment: bool = True,
) -> "Tensor":
    """Compute the loss of one augmented batch, mixed by CutMix, against the soft labels mixed in the same shares.

    Args:
        network: the student.
        stored: probabilities of all images at temperature 1 (count, classes).
        pixels: (n, 3, s, s) uint8.
        rows: (n,) of `stored`.
        generator: a CPU generator.
        settings: flip, factor and temperature.
        augment: without it the images are neither augmented nor mixed.

    Returns KL(target || softmax(student / T)), averaged over the batch, where the target of an image is
    softmax(log(stored) / T): that of the teacher's outputs at temperature T.
    """
    from torch.nn.functional import kl_div, log_softmax, softmax

    from vlcp_ray.protocols.augment import augment_without_jitter, cutmix, normalise

    if augment:
        crop = (1 / settings.factor, rded.RECIPE.largest_crop)
        views = augment_without_jitter(pixels, generator, settings.flip, crop, settings.factor)
        mixed, own, pasted, share = cutmix(views, rows, generator)
    else:
        mixed, own, pasted, share = normalise(pixels), rows, rows, 1.0
    smallest = stored.new_tensor(1e-38)  # a probability of 0 has no logarithm
    targets = softmax(stored.maximum(smallest).log() / settings.temperature, dim=1)
    target = share * targets[own] + (1 - share) * targets[pasted]
    return kl_div(log_softmax(network(mixed) / settings.temperature, dim=1), target, reduction="batchmean")


PROTOCOL: Final = replace(
    rded.PROTOCOL,
    name="rded-stored",
    summary="as rded, but with one soft label per image, which an export of the set has: no teacher beside a training",
    labels="stored",
    training="vlcp_ray.protocols.rded_stored:train",
)
