"""The layout `npz`: MedMNIST's archives of arrays, `train_images`, `train_labels`, and those of val or test."""

import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib import format as npy
from pyarrow import fs as pafs

from vlcp_ray.images import encode_png
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, load_glossary, resolve
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import limit_of
from vlcp_ray.sources.reader import Listing, Part, Row, image_id, list_shards, list_some, tables
from vlcp_ray.sources.shards import ShardError, open_shard
from vlcp_ray.store.io import StoreError

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

_ROWS: Final = 5_000  # of a part: what lies before it is unpacked and dropped
_MAX_LABELS: Final = 2**28  # bytes
_PIECE: Final = 2**20  # bytes that are dropped at a time
_MAX_CHANNELS: Final = 3
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, OSError, ValueError, KeyError, EOFError, RuntimeError)


@dataclass(frozen=True)
class Images:
    """The images of a split: the shape of one, (h, w) or (h, w, 3), and how many there are."""

    count: int
    shape: tuple[int, ...]


class NumpyArchive:
    """Read the arrays of an .npz file, whose images become PNG files; nothing is unpickled.

    Memory: the labels, and one image at a time.
    """

    layout = "npz"

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """Read the headers of the images and all labels.

        Raises:
            ConfigError: an array is missing or of another form, or label numbers have no names.
        """
        self.filesystem, self.max_bytes = filesystem, settings.max_bytes
        self.path = _archive(filesystem, path)
        self.name = self.path.rpartition("/")[2]
        self.limit = limit_of(filesystem, path, settings.follow_links)
        glossary = load_glossary(settings.class_list)
        with self._opened() as archive:
            found = {name.partition("_images")[0] for name in archive.namelist() if name.endswith("_images.npy")}
            if "train" not in found:
                raise ConfigError(
                    f"ingest.source: {self.name} has no train_images; it has {list_some(archive.namelist())}"
                )
            self.names = {"train": "train"} | ({"val": "val"} if "val" in found else {"val": "test"})
            self.names = {split: name for split, name in self.names.items() if name in found}
            self.arrays = {split: self._header(archive, name) for split, name in self.names.items()}
            labels = {split: self._read_labels(archive, name) for split, name in self.names.items()}
        for split, values in labels.items():
            if len(values) != self.arrays[split].count:
                raise ConfigError(
                    f"ingest.source: {self.name} has {self.arrays[split].count} images and {len(values)} labels of "
                    f"{self.names[split]}; download it again"
                )
        if not glossary.numbers:
            most = max(map(max, labels.values()))
            raise ConfigError(
                f"ingest.class_list: {self.name} has label numbers (0 to {most}) and no names; "
                "give a file with a line for each class, in the order of the numbers"
            )
        self.labels = {split: [glossary.key_of(v) or f"#{v}" for v in values] for split, values in labels.items()}
        self.keys = frozenset(glossary.numbers)
        self.classes: Classes = resolve(self.keys, settings.classes, glossary)
        self.wanted = frozenset(self.classes.keys)

    @property
    def splits(self) -> frozenset[str]:
        return frozenset(self.arrays)

    @property
    def description(self) -> str:
        height, width = self.arrays["train"].shape[:2]
        splits = " and ".join(self.arrays)
        return (
            f"arrays of {width} x {height} pixels with {splits}, {self.classes.summary(len(self.keys))}"
            f"{', val from test' if self.names.get('val') == 'test' else ''}"
        )

    def parts(self) -> Sequence[Part]:
        return [
            Part(f"{self.name}:{split}", split, start=start, end=min(start + _ROWS, images.count))
            for split, images in self.arrays.items()
            for start in range(0, images.count, _ROWS)
        ]

    def images(self, part: Part, skipped: object = None, ids: bool = False) -> Iterator[Listing]:
        for number in self._numbers(part, ()):
            key = self.labels[part.split][number]
            yield Listing(part.split, key, self._source(part, number), self._id(part, number))

    def read(self, part: Part, done: Container[str], skipped: object = None) -> Iterator[pa.Table]:
        yield from tables(self._rows(part, self._numbers(part, done)))

    def _numbers(self, part: Part, done: Container[str]) -> list[int]:
        """List the images of a part that are wanted, or of no class, and are not done."""
        labels = self.labels[part.split]
        numbers = (n for n in range(part.start, part.end) if labels[n] in self.wanted or labels[n] not in self.keys)
        return [number for number in numbers if self._source(part, number) not in done]

    def _source(self, part: Part, number: int) -> str:
        return f"{part.path}#{number}"

    def _id(self, part: Part, number: int) -> str:
        return image_id(part.split, self.labels[part.split][number], f"{number:07d}")

    def _rows(self, part: Part, numbers: Sequence[int]) -> Iterator[Row]:
        shape, labels, made = self.arrays[part.split].shape, self.labels[part.split], 0
        size = int(np.prod(shape))
        try:
            with self._opened() as archive, archive.open(f"{self.names[part.split]}_images.npy") as file:
                _read_header(file)
                at = 0
                for number in numbers:
                    _skip(file, (number - at) * size)
                    content = _read_exactly(file, size)
                    at = number + 1
                    pixels = np.frombuffer(content, np.uint8).reshape(shape)
                    row_id, source = self._id(part, number), self._source(part, number)
                    yield Row(row_id, labels[number], part.split, source, encode_png(pixels))
                    made += 1
        except StoreError:
            raise
        except (*_DAMAGE, ShardError) as error:
            for number in numbers[made:]:
                detail = f"{self.name} is damaged ({error}); download it again"
                source = self._source(part, number)
                yield Row(self._id(part, number), labels[number], part.split, source, b"", "unreadable", detail)

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            file: Any = open_shard(self.filesystem, self.path, self.limit)
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, ShardError) as error:
            raise ConfigError(f"ingest.source: {self.name} cannot be read ({error}); download it again") from error
        with file, archive:
            yield archive

    def _header(self, archive: zipfile.ZipFile, name: str) -> Images:
        """Read the shape of the images of a split. Raises ConfigError if they are no images of 8 bits."""
        with suppress(*_DAMAGE), archive.open(f"{name}_images.npy") as file:
            shape, is_fortran, dtype = _read_header(file)
            is_image = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, _MAX_CHANNELS))
            one = shape[1:3] if len(shape) == 4 and shape[3] == 1 else shape[1:]
            if dtype == np.uint8 and is_image and not is_fortran and 0 < int(np.prod(one)) <= self.max_bytes:
                return Images(shape[0], one)
        raise ConfigError(
            f"ingest.source: {name}_images of {self.name} is no array of bytes of the shape (n, h, w) or (n, h, w, 3)"
        )

    def _read_labels(self, archive: zipfile.ZipFile, name: str) -> list[int]:
        """Read the labels of a split. Raises ConfigError if they are not one number for each image."""
        with suppress(*_DAMAGE), archive.open(f"{name}_labels.npy") as file:
            shape, _, dtype = _read_header(file)
            count = int(np.prod(shape))
            is_one = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
            if is_one and dtype.kind in "iub" and 0 < count * dtype.itemsize <= _MAX_LABELS:
                values: npt.NDArray[Any] = np.frombuffer(_read_exactly(file, count * dtype.itemsize), dtype)
                return [int(value) for value in values.tolist()]
        raise ConfigError(
            f"ingest.source: {name}_labels of {self.name} is no array of one number for each image; sets with several "
            "labels for an image have no classes"
        )


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array: shape, whether it is in Fortran's order, and type. Raises ValueError for others."""
    reader: Any = npy  # not typed
    version = reader.read_magic(file)
    read = reader.read_array_header_1_0 if version == (1, 0) else reader.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    return tuple(shape), bool(is_fortran), dtype


def _skip(file: IO[bytes], size: int) -> None:
    while size > 0:
        size -= len(_read_exactly(file, min(size, _PIECE)))


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise EOFError(f"{len(content)} of {size} bytes")
    return content


def _archive(filesystem: pafs.FileSystem, path: str) -> str:
    """Return the path of the archive: the file itself, or the only one in a folder."""
    if filesystem.get_file_info(path).is_file:
        return path
    names = list_shards(filesystem, path, "npz")
    if len(names) != 1:
        found = f"the archives {list_some(sorted(names))}; give one of them" if names else "no .npz file"
        raise ConfigError(f"ingest.source: {path} has {found}")
    return f"{path}/{names[0]}"


def _is_npz(filesystem: pafs.FileSystem, path: str) -> bool:
    info = filesystem.get_file_info(path)
    return bool(info.extension == "npz") if info.is_file else bool(list_shards(filesystem, path, "npz"))


LAYOUT: Final = Layout("npz", "MedMNIST's .npz of train_images and train_labels", _is_npz, NumpyArchive)
