"""Accuracies that papers publish, by image set, protocol, network and number of images per class."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from vlcp_ray.stages.ingest import is_other_number

_KEYS: Final = ("set", "classes", "protocol", "network", "ipc", "epochs", "batch", "teacher", "budgets")


@dataclass(frozen=True)
class Published:
    """One published figure: best top-1 in percent, and its standard deviation where the paper has one.

    Args:
        epochs, batch_size: of the trainings, as the released scripts have them.
        teacher: of the soft labels; empty with hard labels.
    """

    protocol: str
    network: str
    ipc: int
    method: str
    top1_best: float
    std: float | None
    epochs: int
    batch_size: int
    teacher: str

    def has_budget_of(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of the summary has the same epochs, batch size, kind of labels and teacher's network."""
        teacher = row["teacher"].partition(",")[0]
        labels = "teacher" if self.teacher else "hard"
        theirs = (row["epochs"], row["batch_size"], row["labels"], teacher)
        return (self.epochs, self.batch_size, labels, self.teacher) == theirs


def published(name: str, class_lists: Sequence[str], classes: int) -> list[Published]:
    """List the published figures of a job's image set; none for an unknown set.

    Args:
        name: of the job; it identifies the image sets that are used whole.
        class_lists: `ingest.classes`, which identifies the subsets of ImageNet-1K.
        classes: number of classes of the images: the figures do not hold for a part of a set.
    """
    image_set = _image_set(name, class_lists)
    return [
        Published(
            block["protocol"],
            block["network"],
            ipc,
            method,
            value[0],
            value[1] if len(value) > 1 else None,
            block.get("budgets", {}).get(method, epochs),
            batch_size,
            block.get("teacher", ""),
        )
        for block in _content()["figures"]
        if block["set"] == image_set and block["classes"] == classes
        for method, values in block.items()
        if method not in _KEYS
        for ipc, value, epochs, batch_size in zip(block["ipc"], values, block["epochs"], block["batch"], strict=True)
    ]


def other_split(name: str, class_lists: Sequence[str], splits: Mapping[str, int]) -> str:
    """Return that the figures are of other train and val images than a job has, or "".

    Args:
        splits: the number of images of each split.
    """
    wanted = _content()["images"].get(_image_set(name, class_lists))
    if not wanted or not splits:
        return ""
    train, val = (splits.get(split, 0) for split in ("train", "val"))
    if not (is_other_number(train, wanted[0]) or is_other_number(val, wanted[1])):
        return ""
    return (
        f"They are of {wanted[0]:,} train and {wanted[1]:,} val images; this job has {train:,} and {val:,}, so that "
        "its scores cannot be compared with them."
    )


def _image_set(name: str, class_lists: Sequence[str]) -> str:
    return "" if len(class_lists) > 1 else class_lists[0] if class_lists else name


@cache
def _content() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("published.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
