"""The embedded image set: scikit-learn's 1,797 handwritten digits as 32 x 32 RGB images, with a fixed split."""

import hashlib
import io
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASS_NAMES = tuple(
    f"digit {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
)
RESOLUTION = 32
SOURCE = "scikit-learn load_digits"
TRAIN_IMAGES, VAL_IMAGES = 1_297, 500


class Row(TypedDict):
    """One image, with the columns of IMAGES."""

    image_id: str
    label: int
    class_name: str
    split: str
    image: bytes
    source: str


def image_id(index: int) -> str:
    """Return the image_id of an image, digits-0000 to digits-1796, by its index in scikit-learn."""
    return f"digits-{index:04d}"


def split_of(labels: list[int]) -> list[str]:
    """Split the images into train and val, stratified and without a random generator.

    The 500 validation images are divided among the classes by the largest remainder method. Within a class they are
    the images whose ids have the smallest SHA-256 digests.

    Args:
        labels: of all images, in the order of scikit-learn.

    Returns:
        `train` or `val` for each image.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    val_counts = _largest_remainder({label: len(indices) for label, indices in members.items()}, VAL_IMAGES)
    splits = ["train"] * len(labels)
    for label, indices in members.items():
        by_digest = sorted(indices, key=lambda index: hashlib.sha256(image_id(index).encode()).digest())
        for index in by_digest[: val_counts[label]]:
            splits[index] = "val"
    return splits


def _largest_remainder(counts: dict[int, int], seats: int) -> dict[int, int]:
    """Divide seats among labels in proportion to their counts."""
    total = sum(counts.values())
    shares = {label: seats * count // total for label, count in counts.items()}
    by_remainder = sorted(counts, key=lambda label: (-(seats * counts[label] % total), label))
    for label in by_remainder[: seats - sum(shares.values())]:
        shares[label] += 1
    return shares


@cache
def _read() -> "tuple[NDArray[np.uint8], tuple[int, ...]]":
    """Read the grey images (n, 8, 8) and their labels from scikit-learn."""
    import numpy as np
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    return grey, tuple(int(label) for label in data.target)


def upscale(grey: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """Enlarge an 8 x 8 grey digit to a 32 x 32 x 3 RGB image, white on black (Pillow, bicubic)."""
    import numpy as np
    from PIL import Image

    large = Image.fromarray(grey).resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC)
    return np.asarray(large.convert("RGB"))


def load(split: str) -> "tuple[NDArray[np.uint8], NDArray[np.int64]]":
    """Load the images (n, 32, 32, 3) uint8 and labels (n,) int64 of train (1,297) or val (500), by image_id.

    Raises:
        ValueError: another split.
    """
    import numpy as np

    if split not in ("train", "val"):
        raise ValueError(f"split is {split!r}; the digits have 'train' and 'val'")
    grey, labels = _read()
    chosen = [index for index, name in enumerate(split_of(list(labels))) if name == split]
    return np.stack([upscale(grey[index]) for index in chosen]), np.array([labels[index] for index in chosen])


def labels_of(split: str) -> "dict[str, int]":
    """Return the labels of a split by image_id, without the images."""
    labels = list(_read()[1])
    return {image_id(i): labels[i] for i, name in enumerate(split_of(labels)) if name == split}


def rows(split: str | None = None) -> Iterator[Row]:
    """Yield all images, or those of one split, by image_id, each as a PNG with its label and class name."""
    from PIL import Image

    grey, labels = _read()
    for index, name in enumerate(split_of(list(labels))):
        if split in (None, name):
            file = io.BytesIO()
            Image.fromarray(upscale(grey[index])).save(file, format="PNG")
            yield Row(
                image_id=image_id(index),
                label=labels[index],
                class_name=CLASS_NAMES[labels[index]],
                split=name,
                image=file.getvalue(),
                source=SOURCE,
            )
