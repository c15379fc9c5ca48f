"""Labelled images in memory: load, check, and copy them to a device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from vlcp_ray import images
from vlcp_ray.schemas import IMAGES, SYNTHETIC
from vlcp_ray.store.artifact import Artifact

Split = tuple[Tensor, Tensor]  # pixels (n, 3, s, s) uint8 and labels (n,) int64, on the device


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images ready for a classifier: pixels (n, 3, s, s) uint8, labels (n,) int64."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def prepare(table: pa.Table, input_size: int, resize: int | None = None) -> LabelledImages:
    """Decode the columns `image` and `label`, resize the short side to `resize` pixels, and crop the middle.

    Args:
        table: columns image and label.
        input_size: height and width of the crop in pixels.
        resize: short side before the crop in pixels; None: `input_size`.

    Raises:
        ImageError: bytes are not an image.
    """
    pixels = np.empty((len(table), 3, input_size, input_size), np.uint8)
    for target, image in zip(pixels, table["image"], strict=True):
        target[:] = images.center_crop(images.decode(image.as_py()), input_size, resize).transpose(2, 0, 1)
    return LabelledImages(pixels, table["label"].to_numpy().astype(np.int64))


def load_split(artifact: Artifact, split: str, size: int, resize: int) -> LabelledImages:
    """Read one split of IMAGES or SYNTHETIC, sorted by id, and prepare it (see `prepare`)."""
    table, schema = ("images", IMAGES) if artifact.parts("images") else ("synthetic", SYNTHETIC)
    rows = artifact.rows(table, schema, ["image_id", "label", "image"], "split", pa.array([split]))
    return prepare(rows.sort_by("image_id"), size, resize)


def check_split(split: LabelledImages, name: str, input_size: int, class_names: Sequence[str]) -> None:
    """Refuse a set that cannot be trained on or tested with.

    Args:
        split: the set.
        name: how the error names the set, such as `evaluate: the train set`.
        input_size: expected height and width in pixels.
        class_names: the class of each label.

    Raises:
        ValueError: the set is empty, has images of another size, or labels without a class name.
    """
    if not len(split.labels):
        raise ValueError(f"{name} has no images")
    if split.pixels.shape[1:] != (3, input_size, input_size):
        raise ValueError(
            f"{name} has images of {split.pixels.shape[1:]}, not (3, {input_size}, {input_size}); "
            "prepare them with input_size"
        )
    outside = set(np.unique(split.labels).tolist()) - set(range(len(class_names)))
    if outside:
        raise ValueError(f"{name} has labels {sorted(outside)}, but {len(class_names)} class names")


def to_device(split: LabelledImages, device: str) -> Split:
    """Copy to the device, the CPU included: arrays from a shared store are read-only, which torch does not support."""
    return torch.tensor(split.pixels, device=device), torch.tensor(split.labels, device=device)
