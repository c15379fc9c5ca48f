"""The record of a layout of labelled image sets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyarrow import fs as pafs

from vlcp_ray.sources.reader import Source

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest


@dataclass(frozen=True, eq=False)
class Layout:
    """How the image sets of one layout are recognised and opened.

    Args:
        name: its value in `ingest.layout`.
        summary: the files of such a set, for errors and the reference.
        detects: whether the files at a path are in this layout; called in the order of LAYOUTS.
        open: list the files and return a reader of the set. Raises ConfigError if the set has no classes, or lacks a
            wanted one.
        has_class_key: whether `ingest.class_key` names something in it.
        reads_all: whether opening a set may read all of it: its labels lie among the images.
        embedded: whether the set comes with the package; its `ingest.source` is then the name of the layout.
    """

    name: str
    summary: str
    detects: Callable[[pafs.FileSystem, str], bool]
    open: Callable[[pafs.FileSystem, str, "Ingest"], Source]
    has_class_key: bool = False
    reads_all: bool = False
    embedded: bool = False
