"""Labelled images in memory: load, check, and copy them to a device."""

import errno
import math
import os
import stat
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from filelock import FileLock
from torch import Tensor

from vlcp_ray import images
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.files import File

_UNUSED: Final = 24 * 3600.0  # seconds after which a file that nobody has asked for is deleted
_SUFFIXES: Final = (".pixels", ".labels", ".unfinished")
_SMALL: Final = 2**26  # bytes of files that are read at once
_ROWS: Final = 64  # images that a thread decodes at a time
_COLUMNS: Final = ("image_id", "label", "image")
Split = tuple[Tensor, Tensor]  # pixels (n, 3, s, s) uint8 and labels (n,) int64, on the device


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images ready for a classifier: pixels (n, 3, s, s) uint8, labels (n,) int64.

    Args:
        file_bytes: of the files that they were decoded from; 0 where they are not counted.
        soft: probabilities (n, classes) float32 that the set has itself; None: it has hard labels.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    file_bytes: int = 0
    soft: npt.NDArray[np.float32] | None = None


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
    count = pc.sum(pc.binary_length(table["image"])).as_py() or 0
    return LabelledImages(pixels, table["label"].to_numpy().astype(np.int64), count)


def load_split(
    artifact: Artifact, split: str, size: int, resize: int, threads: int = 1, file: Path | None = None
) -> LabelledImages:
    """Read one split of IMAGES or SYNTHETIC, sorted by id, and prepare it (see `prepare`).

    Args:
        threads: that read files and decode their images.
        file: write the pixels to this new file, and return them mapped from it.

    Raises:
        OSError: the disk of `file` is full.
    """
    parts = artifact.parts("images") or artifact.parts("synthetic")
    wanted = pc.field("split") == split

    def read(some: Sequence[File], columns: Sequence[str]) -> pa.Table:
        return artifact.read_parts(some, columns, wanted, [*columns, "split"])

    # A small set is read at once. Of a large one the ids are read first, so that each image is decoded to its place.
    is_small = sum(part.size for part in parts) <= _SMALL
    table = read(parts, _COLUMNS if is_small else ["image_id"]) if parts else SYNTHETIC.empty_table()
    ids = table["image_id"].combine_chunks().sort()
    pixels = _allocate((len(ids), 3, size, size), file)
    labels = np.empty(len(ids), np.int64)

    def place(rows: pa.Table) -> int:
        places, images = pc.index_in(rows["image_id"], ids).to_numpy(), prepare(rows, size, resize)
        pixels[places], labels[places] = images.pixels, images.labels
        return images.file_bytes

    with ThreadPoolExecutor(threads) as pool:
        if is_small:
            counts = pool.map(place, (table.slice(start, _ROWS) for start in range(0, len(table), _ROWS)))
        else:
            counts = pool.map(lambda part: place(read([part], _COLUMNS)), parts)
        return LabelledImages(pixels, labels, sum(counts))


def _allocate(shape: tuple[int, ...], file: Path | None) -> npt.NDArray[np.uint8]:
    """Allocate pixels in memory, or in a file with all its room on the disk: a map of a full disk ends the process."""
    size = math.prod(shape)
    if file is None or not size:
        return np.empty(shape, np.uint8)
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size) if hasattr(os, "posix_fallocate") else stream.truncate(size)
    return np.memmap(file, np.uint8, "r+", shape=shape)


class SharedSplit(NamedTuple):
    """One split of an artifact, which the processes of a machine share.

    Args:
        key: of the content: other images have another one.
        size, resize: see `prepare`.
    """

    artifact: Artifact
    key: str
    split: str
    size: int
    resize: int

    @property
    def name(self) -> str:
        return f"{self.key}-{self.split}-{self.size}-{self.resize}"


def share_split(shared: SharedSplit, threads: int = 1) -> LabelledImages:
    """Load a split once on this machine: all its processes map the same file, and keep nothing else of it.

    `delete_shared` deletes the file. What other runs have left is deleted after a day.

    Raises:
        ValueError: the temporary folder is another user's, or its disk is full.
    """
    folder = _shared_folder()
    pixels, labels = folder / f"{shared.name}.pixels", folder / f"{shared.name}.labels"
    with FileLock(folder / f"{shared.name}.lock"):
        if not (pixels.exists() and labels.exists()):
            _delete_old(folder)
            unfinished = folder / f"{shared.name}.unfinished"
            try:
                split = load_split(shared.artifact, shared.split, shared.size, shared.resize, threads, unfinished)
                split.labels.tofile(labels)
            except OSError as error:
                unfinished.unlink(missing_ok=True)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ValueError(
                    f"evaluate: the disk of {folder} is full; decoded images need 3 x {shared.size} x {shared.size} "
                    "bytes each: let TMPDIR name a folder with room for them on every machine"
                ) from error
            unfinished.rename(pixels)
        for file in (pixels, labels):
            file.touch()
        loaded = np.fromfile(labels, np.int64)
        shape = (len(loaded), 3, shared.size, shared.size)
        return LabelledImages(np.memmap(pixels, np.uint8, "r", shape=shape), loaded)


def delete_shared(splits: Sequence[SharedSplit]) -> None:
    """Delete the files of some splits on this machine; a process that has mapped one keeps it until it ends."""
    folder = _shared_folder()
    for shared in splits:
        with FileLock(folder / f"{shared.name}.lock"):
            for suffix in _SUFFIXES:
                (folder / f"{shared.name}{suffix}").unlink(missing_ok=True)


def _delete_old(folder: Path) -> None:
    """Delete files that no process has asked for in a day."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process deletes them, too
            if file.suffix in _SUFFIXES and time.time() - file.stat().st_mtime >= _UNUSED:
                file.unlink()


def _shared_folder() -> Path:
    """Return this user's folder for shared files, on a local disk; nobody else may write to it."""
    folder = Path(tempfile.gettempdir(), f"vlcp-ray-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ValueError(f"evaluate: {folder} can be changed by others; delete it")
    return folder


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
