"""Knows how curves and pictures of a run are kept as TensorBoard's event files under the root, each record once."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from pyarrow import fs as pafs

from vlcp_ray.images import decode
from vlcp_ray.progress import LOG
from vlcp_ray.store import Artifact, Store, patiently
from vlcp_ray.trackers import Tracker

FOLDER: Final = "tensorboard"
_FILE: Final = "events.out.tfevents."  # TensorBoard reads what has this in its name, in the order of the names


@dataclass(frozen=True)
class Record:
    """What an epoch or a trial has measured: values by step, and PNG pictures of the last step.

    `name` is its own within a series and sorts as time does.
    """

    name: str
    scalars: Sequence[tuple[int, Mapping[str, float]]]
    images: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Records:
    """The records of a job, a folder a series and a file a record: `<root>/tensorboard/<job>/<series>/`.

    A record is a function of what its stage has left in the artifact. So one that is missing, as its run was killed,
    is made by the next run, and one that is there is left alone: nothing comes twice.
    """

    store: Store
    job: str
    tracker: Tracker | None = None

    def kept(self, series: str) -> set[str]:
        """The names of the records of a series that are there."""
        return self._there.setdefault(series, set())

    def keep(self, series: str, record: Record) -> None:
        """Write a record, and hand it to the tracker before, as the file says that all was done.

        A tracker out of reach costs that tracker the record, and no run.
        """
        if self.tracker:
            try:
                self.tracker.keep(series, record.scalars, record.images)
            except Exception:  # each has errors of its own
                LOG.warning(
                    "%s of %s is not mirrored: the tracker does not take it", record.name, series, exc_info=True
                )
        with tempfile.TemporaryDirectory() as local:
            content = _events(record, local)
        self._folder.write_bytes(f"{series}/{_FILE}{record.name}", content)
        self.kept(series).add(record.name)

    @property
    def _folder(self) -> Artifact:
        return Artifact(self.store.filesystem, f"{self.store.path}/{FOLDER}/{self.job}")

    @cached_property
    def _there(self) -> dict[str, set[str]]:
        folder, found = self._folder, dict[str, set[str]]()
        selector = pafs.FileSelector(folder.path, allow_not_found=True, recursive=True)
        for info in patiently(lambda: folder.filesystem.get_file_info(selector), f"list {folder.path}"):
            series, _, file = str(info.path).removeprefix(f"{folder.path}/").rpartition("/")
            if file.startswith(_FILE):
                found.setdefault(series, set()).add(file.removeprefix(_FILE))
        return found


def _events(record: Record, local: str) -> bytes:
    """The content of an event file."""
    from tensorboardX import SummaryWriter  # here, as it loads protobuf

    with SummaryWriter(local) as writer:
        for step, values in record.scalars:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        for name, png in record.images.items():
            writer.add_image(name, np.asarray(decode(png)), record.scalars[-1][0], dataformats="HWC")
    (file,) = Path(local).iterdir()
    return file.read_bytes()
