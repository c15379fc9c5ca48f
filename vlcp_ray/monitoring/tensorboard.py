"""Write the curves and images of a run as TensorBoard event files under the root, each record once."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from pyarrow import fs as pafs

from vlcp_ray.images import decode
from vlcp_ray.monitoring.progress import LOG
from vlcp_ray.monitoring.trackers import Tracker
from vlcp_ray.store.artifact import Artifact, Store
from vlcp_ray.store.io import retry

FOLDER: Final = "tensorboard"
_FILE: Final = "events.out.tfevents."  # TensorBoard reads the files with this in their name, in the order of the names


@dataclass(frozen=True)
class Record:
    """The values of an epoch or a trial by step, and PNG images of the last step.

    Args:
        name: unique within its series; names sort by time.
    """

    name: str
    scalars: Sequence[tuple[int, Mapping[str, float]]]
    images: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Records:
    """The records of a job, one file each, in a folder per series: `<root>/tensorboard/<job>/<series>/`.

    A record depends only on what its stage has written to the artifact. A record that is missing because its run was
    killed is added by the next run; an existing record is not added again.
    """

    store: Store
    job: str
    tracker: Tracker | None = None

    def names(self, series: str) -> set[str]:
        """Return the names of the existing records of a series."""
        return self._existing.setdefault(series, set())

    def add(self, series: str, record: Record) -> None:
        """Send a record to the tracker, then write its file, which marks it as added.

        If the tracker fails, it lacks the record, and the run continues.
        """
        if self.tracker:
            try:
                self.tracker.record(series, record.scalars, record.images)
            except Exception:  # each tracker has errors of its own
                LOG.warning("%s of %s is not mirrored: the tracker failed", record.name, series, exc_info=True)
        with tempfile.TemporaryDirectory() as local:
            content = _events(record, local)
        self._folder.write_bytes(f"{series}/{_FILE}{record.name}", content)
        self.names(series).add(record.name)

    @property
    def _folder(self) -> Artifact:
        return Artifact(self.store.filesystem, f"{self.store.path}/{FOLDER}/{self.job}")

    @cached_property
    def _existing(self) -> dict[str, set[str]]:
        folder, names = self._folder, dict[str, set[str]]()
        selector = pafs.FileSelector(folder.path, allow_not_found=True, recursive=True)
        for info in retry(lambda: folder.filesystem.get_file_info(selector), f"list {folder.path}"):
            series, _, file = str(info.path).removeprefix(f"{folder.path}/").rpartition("/")
            if file.startswith(_FILE):
                names.setdefault(series, set()).add(file.removeprefix(_FILE))
        return names


def _events(record: Record, local: str) -> bytes:
    """Encode a record as a TensorBoard event file."""
    from tensorboardX import SummaryWriter  # here, as it loads protobuf

    with SummaryWriter(local) as writer:
        for step, values in record.scalars:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        for name, png in record.images.items():
            writer.add_image(name, np.asarray(decode(png)), record.scalars[-1][0], dataformats="HWC")
    (file,) = Path(local).iterdir()
    return file.read_bytes()
