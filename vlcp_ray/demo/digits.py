"""The embedded data set: scikit-learn's 1,797 handwritten digits as 32 x 32 RGB images, and their only split."""

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
    """One image with the columns of the IMAGES contract."""

    image_id: str
    label: int
    class_name: str
    split: str
    image: bytes
    source: str


def image_id(index: int) -> str:
    """The stable name of image `index`, counted as in scikit-learn: "digits-0000" to "digits-1796"."""
    return f"digits-{index:04d}"


def split_of(labels: list[int]) -> list[str]:
    """The split of every image, "train" or "val", given all labels in scikit-learn's order.

    Stratified and free of any random generator: 500 validation places are shared among the classes by largest
    remainder, and within a class they go to the images whose ids have the smallest SHA-256 digests.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    places = _largest_remainder({label: len(indices) for label, indices in members.items()}, VAL_IMAGES)
    splits = ["train"] * len(labels)
    for label, indices in members.items():
        by_digest = sorted(indices, key=lambda index: hashlib.sha256(image_id(index).encode()).digest())
        for index in by_digest[: places[label]]:
            splits[index] = "val"
    return splits


def _largest_remainder(counts: dict[int, int], seats: int) -> dict[int, int]:
    total = sum(counts.values())
    places = {label: seats * count // total for label, count in counts.items()}
    by_remainder = sorted(counts, key=lambda label: (-(seats * counts[label] % total), label))
    for label in by_remainder[: seats - sum(places.values())]:
        places[label] += 1
    return places


@cache
def _source() -> "tuple[NDArray[np.uint8], tuple[int, ...]]":
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    return grey, tuple(int(label) for label in found.target)


def upscale(grey: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """An 8 x 8 grey digit as a 32 x 32 x 3 RGB image, white on black (Pillow, bicubic)."""
    import numpy as np
    from PIL import Image

    large = Image.fromarray(grey).resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC)
    return np.asarray(large.convert("RGB"))


def load(split: str) -> "tuple[NDArray[np.uint8], NDArray[np.int64]]":
    """Images (n, 32, 32, 3) uint8 and labels (n,) int64 of "train" (1,297) or "val" (500), in order of id."""
    import numpy as np

    if split not in ("train", "val"):
        raise ValueError(f"split is {split!r}; the digits have 'train' and 'val'")
    grey, labels = _source()
    chosen = [index for index, name in enumerate(split_of(list(labels))) if name == split]
    return np.stack([upscale(grey[index]) for index in chosen]), np.array([labels[index] for index in chosen])


def rows(split: str | None = None) -> Iterator[Row]:
    """All images, or those of one split, in the order of their ids, each as a PNG with its label and names."""
    from PIL import Image

    grey, labels = _source()
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
