"""A distilled set as a torch Dataset."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset

from vlcp_ray.images import decode


class DistilledSet(Dataset[tuple[Any, int]]):
    """The images of a distilled set with their labels, sorted by label and image_id; the files are held in memory.

    Args:
        rows: SYNTHETIC.
        classes: the names of the classes, by label.
        transform: what is made of each RGB image of PIL; None: the image itself.
    """

    def __init__(self, rows: pa.Table, classes: Sequence[str], transform: Callable[[Any], Any] | None = None) -> None:
        self.images: list[bytes] = rows["image"].to_pylist()
        self.targets: list[int] = rows["label"].to_pylist()
        self.classes, self.transform = list(classes), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = decode(self.images[index])
        return (self.transform(image) if self.transform else image), self.targets[index]
