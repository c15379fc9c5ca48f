"""The layout `npz`: MedMNIST's archives of arrays, `train_images`, `train_labels`, and those of val or test."""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from pyarrow import fs as pafs

from vlcp_ray.images import encode_png
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, load_glossary, resolve
from vlcp_ray.sources.image_files import is_image
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import limit_of
from vlcp_ray.sources.locate import holds_images
from vlcp_ray.sources.numbered import NumberedImages
from vlcp_ray.sources.reader import Part, Row, image_id, list_folder, list_folders, list_shards, list_some
from vlcp_ray.sources.shards import ShardError, open_shard
from vlcp_ray.store.io import StoreError

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

_ROWS: Final = 5_000  # of a part: what lies before it is unpacked and dropped
_MAX_IMAGES: Final = 2**22  # of a split; the largest set of MedMNIST has 165,466
_MAX_HEADER: Final = 2**16  # bytes of an array's header; some hundred are usual
_CHECKED: Final = 8  # folders or archives beside each other
_PIECE: Final = 2**20  # bytes that are dropped at a time
_MAX_CHANNELS: Final = 3
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of numpy; others unpack any size at once
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, OSError, ValueError, KeyError, EOFError, RuntimeError)


@dataclass(frozen=True)
class Images:
    """The images of a split: the shape of one, (h, w) or (h, w, 3), and how many there are."""

    count: int
    shape: tuple[int, ...]


class NumpyArchive(NumberedImages):
    """Read the arrays of an .npz file, whose images become PNG files; nothing is unpickled.

    Memory: the labels as numbers, of at most 4 million images for each split, and one image at a time.
    """

    layout = "npz"

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """Read the headers of the images and all labels.

        Raises:
            ConfigError: an array is missing, too large or of another form, or label numbers have no names.
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
            self.numbers = {split: self._read_labels(archive, name) for split, name in self.names.items()}
        for split, values in self.numbers.items():
            if len(values) != self.arrays[split].count:
                raise ConfigError(
                    f"ingest.source: {self.name} has {self.arrays[split].count} images and {len(values)} labels of "
                    f"{self.names[split]}; download it again"
                )
        if not glossary.numbers:
            most = max(int(values.max()) for values in self.numbers.values())
            raise ConfigError(
                f"ingest.class_list: {self.name} has label numbers (0 to {most}) and no names; "
                "give a file with a line for each class, in the order of the numbers"
            )
        self.glossary, self.keys = glossary, frozenset(glossary.numbers)
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

    def _key(self, part: Part, number: int) -> str:
        """Return the class key of an image: `#` and the label number where it is outside the list."""
        label = int(self.numbers[part.split][number])
        return self.glossary.key_of(label) or f"#{label}"

    def _id(self, part: Part, number: int) -> str:
        return image_id(part.split, self._key(part, number), f"{number:07d}")

    def _rows(self, part: Part, numbers: Sequence[int]) -> Iterator[Row]:
        shape, made = self.arrays[part.split].shape, 0
        size = math.prod(shape)
        try:
            with self._opened() as archive, _open_array(archive, f"{self.names[part.split]}_images") as file:
                _read_header(file)
                at = 0
                for number in numbers:
                    _skip(file, (number - at) * size)
                    content = _read_exactly(file, size)
                    at = number + 1
                    pixels = np.frombuffer(content, np.uint8).reshape(shape)
                    row_id, source = self._id(part, number), self._source(part, number)
                    yield Row(row_id, self._key(part, number), part.split, source, encode_png(pixels))
                    made += 1
        except StoreError:
            raise
        except (*_DAMAGE, ShardError) as error:
            for number in numbers[made:]:
                detail = f"{self.name} is damaged ({error}); download it again"
                row_id, source = self._id(part, number), self._source(part, number)
                yield Row(row_id, self._key(part, number), part.split, source, b"", "unreadable", detail)

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with _open_zip(self.filesystem, self.path, self.limit) as archive:
                yield archive
        except ShardError as error:
            raise ConfigError(f"ingest.source: {self.name} cannot be read ({error}); download it again") from error

    def _header(self, archive: zipfile.ZipFile, name: str) -> Images:
        """Read the shape of the images of a split. Raises ConfigError if they are too many, or no images of 8 bits."""
        found: Images | None = None
        with _damage_ignored(), _open_array(archive, f"{name}_images") as file:
            shape, is_fortran, dtype = _read_header(file)
            is_picture = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, _MAX_CHANNELS))
            one = shape[1:3] if len(shape) == 4 and shape[3] == 1 else shape[1:]
            if dtype == np.uint8 and is_picture and not is_fortran and 0 < math.prod(one) <= self.max_bytes:
                found = Images(shape[0], one)
        if found is None:
            raise ConfigError(
                f"ingest.source: {name}_images of {self.name} is no array of bytes of the shape (n, h, w) or "
                "(n, h, w, 3)"
            )
        self._check_count(name, found.count)
        return found

    def _read_labels(self, archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
        """Read the labels of a split. Raises ConfigError if they are too many, or not one number for each image."""
        values: npt.NDArray[Any] | None = None
        count = 0
        with _damage_ignored(), _open_array(archive, f"{name}_labels") as file:
            shape, _, dtype = _read_header(file)
            if (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) and dtype.kind in "iub":
                count = shape[0]
                if 0 < count <= _MAX_IMAGES:
                    values = np.frombuffer(_read_exactly(file, count * dtype.itemsize), dtype)
        self._check_count(name, count)
        if values is None:
            raise ConfigError(
                f"ingest.source: {name}_labels of {self.name} is no array of one number for each image; sets with "
                "several labels for an image have no classes"
            )
        return values

    def _check_count(self, name: str, count: int) -> None:
        if count > _MAX_IMAGES:
            raise ConfigError(
                f"ingest.source: {self.name} has {count:,} images or labels of {name}, the limit is {_MAX_IMAGES:,}; "
                "write the set as parquet files or tars"
            )


@contextmanager
def _open_zip(filesystem: pafs.FileSystem, path: str, limit: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive and read the list of its members.

    Args:
        limit: as of `open_shard`.

    Raises:
        ShardError: it is damaged, or cannot be opened.
        StoreError: the store fails.
    """
    with open_shard(filesystem, path, limit) as shard:
        file: Any = shard
        try:
            archive = zipfile.ZipFile(file)
        except StoreError:
            raise
        except _DAMAGE as error:
            raise ShardError(" ".join(str(error).split())) from error
        with archive:
            yield archive


def _open_array(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open the file of an array. Raises an error of _DAMAGE if there is none, or it is not compressed as numpy does."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in _METHODS:
        raise ValueError(f"{name} is compressed with method {info.compress_type}")
    return archive.open(info)


@contextmanager
def _damage_ignored() -> Iterator[None]:
    """Leave the block at an error of damaged bytes, but raise those of the store."""
    try:
        yield
    except StoreError:
        raise
    except _DAMAGE:
        return


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array: shape, whether it is in Fortran's order, and type. Raises ValueError for others."""
    reader: Any = npy  # not typed
    version = reader.read_magic(io.BytesIO(_read_exactly(file, reader.MAGIC_LEN)))
    length = _read_exactly(file, 2 if version == (1, 0) else 4)
    if (size := int.from_bytes(length, "little")) > _MAX_HEADER:
        raise ValueError(f"a header of {size} bytes, the limit is {_MAX_HEADER}")
    read = reader.read_array_header_1_0 if version == (1, 0) else reader.read_array_header_2_0
    header = io.BytesIO(length + _read_exactly(file, size))
    try:
        shape, is_fortran, dtype = read(header)
    except Exception as error:  # those of Python's parser, and of any type that it finds
        raise ValueError(f"a header that cannot be read: {error}") from error
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
    """Return whether a file is an archive of arrays, or a folder has one of train_images and no other images."""
    info = filesystem.get_file_info(path)
    if info.is_file:
        return bool(info.extension == "npz")
    names = sorted(list_shards(filesystem, path, "npz"))[:_CHECKED]
    if not names or any(info.is_file and is_image(info.base_name) for info in list_folder(filesystem, path)):
        return False
    if any(holds_images(filesystem, folder) for _, folder in list_folders(filesystem, path)[:_CHECKED]):
        return False
    return any(_has_images(filesystem, path, name) for name in names)


def _has_images(filesystem: pafs.FileSystem, folder: str, name: str) -> bool:
    """Return whether an archive lists train_images, or cannot be read: opening the set then says why."""
    try:
        with _open_zip(filesystem, f"{folder}/{name}", limit_of(filesystem, folder, False)) as archive:
            return "train_images.npy" in archive.namelist()
    except ShardError:
        return True


LAYOUT: Final = Layout("npz", "MedMNIST's .npz of train_images and train_labels", _is_npz, NumpyArchive)
