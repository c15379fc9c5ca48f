"""The layout `cifar`: the unpacked python archives of CIFAR-10 and CIFAR-100, whose files are pickles of arrays."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pyarrow import fs as pafs

from vlcp_ray.images import encode_png
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, load_glossary, resolve
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import limit_of
from vlcp_ray.sources.locate import has_images, holds_images
from vlcp_ray.sources.numbered import NumberedImages
from vlcp_ray.sources.pickles import Array, Blob, read_bytes, read_pickle
from vlcp_ray.sources.reader import (
    MAX_LABEL,
    Part,
    Row,
    format_split_counts,
    image_id,
    list_folder,
    list_folders,
    list_some,
    utf8,
)
from vlcp_ray.sources.shards import ShardError, open_shard

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

_SIDE: Final = 32  # pixels
_SIZE: Final = 3 * _SIDE * _SIDE  # bytes of an image: all of red, of green, of blue
_ROWS: Final = 5_000  # of a part
_CHECKED: Final = 8  # folders beside each other
_MAX_FILE_NAME: Final = 255  # bytes


@dataclass(frozen=True)
class Form:
    """The files of an archive: of class names, of train and of val; and the lists of label numbers and class names."""

    meta: str
    train: tuple[str, ...]
    val: str
    labels: str
    names: str


_FORMS: Final = (
    Form("batches.meta", tuple(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "labels", "label_names"),
    Form("meta", ("train",), "test", "fine_labels", "fine_label_names"),
)


@dataclass(frozen=True)
class Batch:
    """The images of a file: their split, their pixels, and the label number and file name of each; or no names."""

    split: str
    data: bytes | Blob
    labels: tuple[int, ...]
    names: tuple[str, ...]


class Cifar(NumberedImages):
    """Read the files of CIFAR, whose images become PNG files; nothing is unpickled, see `pickles`.

    Memory: labels and file names, and twice the pixels of 5,000 images, which have 15 MB.
    """

    layout = "cifar"

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """Read class names, labels and file names, and no pixels.

        Raises:
            ConfigError: a file of train is missing, one is damaged or of another form, or a wanted class is not there.
        """
        self.filesystem, self.max_bytes = filesystem, settings.max_bytes
        self.path, form = _find(filesystem, path)
        self.limit = limit_of(filesystem, path, settings.follow_links)
        glossary = load_glossary(settings.class_list)
        files = {info.base_name for info in list_folder(filesystem, self.path)}
        if missing := [name for name in form.train if name not in files]:
            raise ConfigError(
                f"ingest.source: {self.path} has no {list_some(missing)}; CIFAR has {len(form.train)} files of train; "
                "unpack the archive again"
            )
        self.numbers = tuple(map(glossary.canonical, self._read_names(form)))
        splits = dict.fromkeys(form.train, "train") | ({form.val: "val"} if form.val in files else {})
        self.batches = {name: self._read_batch(name, split, form.labels) for name, split in splits.items()}
        self.keys = frozenset(self.numbers)
        self.classes: Classes = resolve(self.keys, settings.classes, glossary)
        self.wanted = frozenset(self.classes.keys)
        ids = Counter(self._name_id(name, n) for name, one in self.batches.items() for n in range(len(one.labels)))
        self.repeated = frozenset(row_id for row_id, count in ids.items() if count > 1)

    @property
    def splits(self) -> frozenset[str]:
        return frozenset(batch.split for batch in self.batches.values())

    @property
    def description(self) -> str:
        counts = format_split_counts({name: batch.split for name, batch in self.batches.items()})
        return f"the python archive of CIFAR with {counts}, {self.classes.summary(len(self.keys))}"

    def parts(self) -> Sequence[Part]:
        return [
            Part(name, batch.split, start=start, end=min(start + _ROWS, len(batch.labels)))
            for name, batch in self.batches.items()
            for start in range(0, len(batch.labels), _ROWS)
        ]

    def _rows(self, part: Part, numbers: Sequence[int]) -> Iterator[Row]:
        content, error = self._read_pixels(part) if numbers else (b"", "")
        for number in numbers:
            key, row_id, source = self._key(part, number), self._id(part, number), self._source(part, number)
            if error:
                yield Row(row_id, key, part.split, source, b"", "unreadable", error)
                continue
            at = (number - part.start) * _SIZE
            pixels = np.frombuffer(content, np.uint8, _SIZE, at).reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
            image = encode_png(np.ascontiguousarray(pixels))
            if len(image) > self.max_bytes:
                detail = f"{len(image)} bytes, the limit is {self.max_bytes}"
                yield Row(row_id, key, part.split, source, b"", "too_large", detail)
            else:
                yield Row(row_id, key, part.split, source, image)

    def _read_pixels(self, part: Part) -> tuple[bytes, str]:
        """Read the pixels of all images of a part; or return none, and why the file cannot be read any more."""
        start, size = part.start * _SIZE, (part.end - part.start) * _SIZE
        try:
            with open_shard(self.filesystem, f"{self.path}/{part.path}", self.limit) as file:
                return read_bytes(file, self.batches[part.path].data, start, size), ""
        except ShardError as error:
            return b"", f"{part.path} is damaged ({error}); download it again"

    def _key(self, part: Part, number: int) -> str:
        return self._class_key(part.path, number)

    def _class_key(self, name: str, number: int) -> str:
        label = self.batches[name].labels[number]
        return self.numbers[label] if 0 <= label < len(self.numbers) else f"#{label}"

    def _id(self, part: Part, number: int) -> str:
        """Return the id of an image from its file name; with its place where it has none, or another has it."""
        row_id = self._name_id(part.path, number)
        if row_id not in self.repeated:
            return row_id
        names = self.batches[part.path].names
        name = f"{part.path}/{number:05d}/{names[number] if names else ''}"
        return image_id(part.split, self._key(part, number), name)

    def _name_id(self, name: str, number: int) -> str:
        batch = self.batches[name]
        file_name = batch.names[number] if batch.names else f"{name}/{number:05d}"
        return image_id(batch.split, self._class_key(name, number), file_name)

    def _read_names(self, form: Form) -> list[str]:
        """Read the class names in the order of their label numbers. Raises ConfigError if they are none."""
        names = _texts(self._read(form.meta).get(form.names), MAX_LABEL)
        if not names or len(set(names)) < len(names) or not all(names):
            raise ConfigError(
                f"ingest.source: {form.meta} of {self.path} has no list {form.names} of different class names; "
                "download it again"
            )
        return names

    def _read_batch(self, name: str, split: str, labels: str) -> Batch:
        """Read the labels and file names of a batch. Raises ConfigError if it has another form."""
        content = self._read(name)
        data, numbers = content.get("data"), content.get(labels)
        if (
            not isinstance(data, Array)
            or not isinstance(numbers, list)
            or not numbers
            or not all(type(number) is int for number in numbers)
            or data.shape != (len(numbers), _SIZE)
            or data.size < len(numbers) * _SIZE
        ):
            raise ConfigError(
                f"ingest.source: {name} of {self.path} has no images of 32 x 32 pixels in data with as many numbers in "
                f"{labels}, as CIFAR has; download it again"
            )
        names = _texts(content.get("filenames"), _MAX_FILE_NAME) or ()
        return Batch(split, data.data, tuple(numbers), tuple(names) if len(names) == len(numbers) else ())

    def _read(self, name: str) -> Mapping[str, Any]:
        """Read the dict of a file. Raises ConfigError if it has anything else in it."""
        try:
            with open_shard(self.filesystem, f"{self.path}/{name}", self.limit) as file:
                content = read_pickle(file)
        except ShardError as error:
            raise ConfigError(
                f"ingest.source: {name} of {self.path} cannot be read ({error}); download it again"
            ) from error
        entries = content.items() if isinstance(content, dict) else ()
        return {_text(key): value for key, value in entries}


def _texts(values: Any, most: int) -> list[str] | None:
    """Return texts of at most so many characters, or None if there are others."""
    if not isinstance(values, list) or not all(
        isinstance(value, bytes | str) and len(value) <= most for value in values
    ):
        return None
    texts = {value: _text(value) for value in values}  # a pickle can repeat one value any number of times
    return [texts[value] for value in values]


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else utf8(value)


def _form(filesystem: pafs.FileSystem, folder: str) -> Form | None:
    names = {info.base_name for info in list_folder(filesystem, folder) if info.is_file}
    return next((form for form in _FORMS if form.meta in names and names & set(form.train)), None)


def _folders(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """List the folders of archives: the path itself, or some of its first folders."""
    if _form(filesystem, path):
        return [path]
    return [inner for _, inner in list_folders(filesystem, path)[:_CHECKED] if _form(filesystem, inner)]


def _find(filesystem: pafs.FileSystem, path: str) -> tuple[str, Form]:
    """Return the folder of the archive and its form. Raises ConfigError if there is none, or several."""
    found = _folders(filesystem, path)
    form = _form(filesystem, found[0]) if len(found) == 1 else None
    if form is None:
        what = f"holds {list_some(found)}; give one of them" if found else "has no batches.meta beside data_batch_1"
        raise ConfigError(f"ingest.source: {path} {what}")
    return found[0], form


def _is_cifar(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether a folder is that of an archive, or holds one and no images."""
    if filesystem.get_file_info(path).is_file:
        return False
    found = _folders(filesystem, path)
    if not found or found == [path]:
        return bool(found)
    others = [folder for _, folder in list_folders(filesystem, path)[:_CHECKED] if folder not in found]
    return not has_images(filesystem, path) and not any(holds_images(filesystem, folder) for folder in others)


LAYOUT: Final = Layout("cifar", "CIFAR's cifar-10-batches-py or cifar-100-python", _is_cifar, Cifar)
