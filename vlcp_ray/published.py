"""Knows the accuracies that papers state: for which image set, network, protocol and number of images per class."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

_NAMES: Final = ("set", "classes", "protocol", "network", "ipc")


@dataclass(frozen=True)
class Published:
    """One stated figure: best top-1 in percent, and its standard deviation where one is stated."""

    protocol: str
    network: str
    ipc: int
    method: str
    top1_best: float
    std: float | None


def published(name: str, class_lists: Sequence[str], classes: int) -> list[Published]:
    """What is stated for a job's image set; nothing where it is another one.

    Args:
        name: of the job; it tells the sets that are taken whole.
        class_lists: `ingest.classes`, which tells the subsets of ImageNet-1K.
        classes: how many the images really have: a part of a set has other figures.
    """
    mine = "" if len(class_lists) > 1 else class_lists[0] if class_lists else name
    return [
        Published(block["protocol"], block["network"], ipc, method, value[0], value[1] if len(value) > 1 else None)
        for block in _figures()
        if block["set"] == mine and block["classes"] == classes
        for method, values in block.items()
        if method not in _NAMES
        for ipc, value in zip(block["ipc"], values, strict=True)
    ]


@cache
def _figures() -> tuple[dict[str, Any], ...]:
    text = resources.files("vlcp_ray").joinpath("published.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["figures"])
