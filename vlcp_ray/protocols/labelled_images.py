"""Labelled images in memory: load, check, and copy them to a device."""

import errno
import os
import stat
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from filelock import FileLock
from torch import Tensor

from vlcp_ray import images
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.files import File

_UNUSED: Final = 24 * 3600.0  # seconds after which a file that nobody has asked for is deleted
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


def load_split(
    artifact: Artifact, split: str, size: int, resize: int, threads: int = 1, file: Path | None = None
) -> LabelledImages:
    """Read one split of IMAGES or SYNTHETIC, sorted by id, and prepare it (see `prepare`).

    Args:
        threads: that read files and decode their images.
        file: write the pixels to this new file, and return them mapped from it.
    """
    parts = artifact.parts("images") or artifact.parts("synthetic")
    columns, wanted = ["image_id", "label", "image"], pc.field("split") == split

    def load(part: File) -> tuple[pa.ChunkedArray, LabelledImages]:
        rows = artifact.read_parts([part], columns, wanted, [*columns, "split"])
        return rows["image_id"], prepare(rows, size, resize)

    with ThreadPoolExecutor(threads) as pool:
        loaded = list(pool.map(load, parts))
    ids = pa.chunked_array([chunk for column, _ in loaded for chunk in column.chunks], pa.string())
    order = pc.sort_indices(ids).to_numpy()
    places = np.empty(len(ids), np.int64)  # of each image in the order of their ids
    places[order] = np.arange(len(ids))
    shape = (len(ids), 3, size, size)
    pixels: npt.NDArray[np.uint8] = np.empty(shape, np.uint8) if file is None else _create(file, shape)
    labels, start = np.empty(len(ids), np.int64), 0
    for _, part in loaded:
        rows = places[start : start + len(part.labels)]
        pixels[rows], labels[rows] = part.pixels, part.labels
        start += len(part.labels)
    return LabelledImages(pixels, labels)


def _create(file: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.lib.format.open_memmap(file, "w+", np.uint8, shape)  # type: ignore[no-untyped-call, no-any-return]


def share_split(artifact: Artifact, split: str, size: int, resize: int, threads: int = 1) -> LabelledImages:
    """Load one split once on this machine: all its processes map the same file, and keep nothing else of it.

    Files that no process has asked for in a day are deleted; `delete_shared` deletes those that are left.

    Raises:
        ValueError: the temporary folder is another user's, or its disk is full.
    """
    folder = _shared_folder()
    name = f"{artifact.path.rpartition('/')[2]}-{split}-{size}-{resize}"
    pixels, labels = folder / f"{name}.npy", folder / f"{name}-labels.npy"
    with FileLock(folder / f"{name}.lock"):
        if not (pixels.exists() and labels.exists()):
            _delete_unused(folder)
            unfinished = folder / f"{name}.unfinished"
            try:
                np.save(labels, load_split(artifact, split, size, resize, threads, unfinished).labels)
            except OSError as error:
                unfinished.unlink(missing_ok=True)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ValueError(
                    f"evaluate: the disk of {folder} is full; decoded images need 3 x {size} x {size} bytes each: let "
                    "TMPDIR name a folder with room for them on every machine"
                ) from error
            unfinished.rename(pixels)
        pixels.touch()
    return LabelledImages(np.load(pixels, mmap_mode="r"), np.load(labels))


def delete_shared() -> None:
    """Delete the files of `share_split` on this machine; processes that have mapped one keep it until they end."""
    _delete_unused(_shared_folder(), 0.0)


def _delete_unused(folder: Path, seconds: float = _UNUSED) -> None:
    for file in folder.glob("*.npy"):
        with suppress(FileNotFoundError):  # another process deletes them, too
            if time.time() - file.stat().st_mtime >= seconds:
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
