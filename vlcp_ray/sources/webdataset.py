"""The layout `webdataset`: tars whose consecutive members of one key form a sample: an image and `cls` or `json`."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, expand, load_glossary, resolve
from vlcp_ray.sources.image_files import SUFFIXES
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.reader import Part, Row, find_shards, format_split_counts, has_shards, image_id, tables

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

#: Fields of a sample's json that may name its class; the first that has a value is used.
_CLASS_FIELDS: Final = ("wnid", "class_name", "class", "label", "cls")
_MAX_PADDING: Final = 2**20  # zeros after the last member: tar fills its last record, 10 KiB by default
_MAX_LABEL_BYTES: Final = 2**20  # of a cls or json member; a longer one is broken
_BUFFER: Final = 2**20  # bytes per request over a network; on a disk it is faster to seek past unread members


@dataclass(frozen=True)
class Sample:
    """The members of a key by their extension; `name` is the key, with a number if the tar had the key before."""

    key: str
    name: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)

    def image(self) -> tarfile.TarInfo | None:
        """Return the member that is the image."""
        return next((m for ext, m in self.members.items() if f".{ext}" in SUFFIXES), None)


class WebDataset:
    """Read tars named after their splits: `imagenet1k-train-0000.tar`, `val/000.tar`; without such a word, train."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """List the tars; all labels are read if neither `classes` nor `class_list` names the classes.

        Raises:
            ConfigError: label numbers have no names, or a tar cannot be read.
        """
        self.filesystem, self.max_bytes = filesystem, settings.max_bytes
        self.path, self.files = find_shards(filesystem, path, "tar")
        self.glossary = load_glossary(settings.class_list)
        self.is_subset = bool(settings.classes)
        self.keys = frozenset(expand(settings.classes, self.glossary) or self.glossary.numbers or self._read_classes())
        self.classes: Classes = resolve(self.keys, settings.classes, self.glossary)

    @property
    def description(self) -> str:
        return f"WebDataset with {format_split_counts(self.files)}, {self.classes.summary(len(self.keys))}"

    def parts(self) -> Sequence[Part]:
        return [Part(path, split) for path, split in sorted(self.files.items())]

    def read(self, part: Part, done: Container[str]) -> Iterator[pa.Table]:
        yield from tables(self._rows(part, done))

    def _rows(self, part: Part, done: Container[str]) -> Iterator[Row]:
        wanted = frozenset(self.classes.keys)
        with self._open(part.path) as tar:
            for sample in _samples(tar):
                if f"{part.path}:{sample.name}" not in done:
                    key, detail = self._read_label(tar, sample)
                    if key in wanted or not self._is_class(key):
                        yield self._make_row(tar, part, sample, key, detail)
            if error := _error_at_end(tar):
                source = f"{part.path}:from byte {tar.offset}"
                yield Row(image_id(part.split, "", source), "", part.split, source, b"", "unreadable", error)

    def _is_class(self, key: str) -> bool:
        """Return whether a key is a class; if `ingest.classes` selects some, any name may be one of the others."""
        return key in self.keys or (self.is_subset and key != "" and not key.startswith("#"))

    def _make_row(self, tar: tarfile.TarFile, part: Part, sample: Sample, key: str, detail: str) -> Row:
        content, reason, member = b"", "" if key else "no_label", sample.image()
        if member is None:
            reason, detail = "unreadable", f"the sample has {', '.join(sample.members)} and no image"
        elif member.size > self.max_bytes:
            reason, detail = "too_large", f"{member.size} bytes, the limit is {self.max_bytes}"
        elif not reason:
            try:
                content = _read_member(tar, member)
            except tarfile.TarError as error:
                reason, detail = "unreadable", f"{type(error).__name__}: {error}"
        return Row(
            image_id(part.split, key, sample.key),
            key,
            part.split,
            f"{part.path}:{sample.name}",
            content,
            reason,
            detail,
        )

    def _read_label(self, tar: tarfile.TarFile, sample: Sample) -> tuple[str, str]:
        """Return the class key of a sample and "", or "" and why it has none."""
        try:
            if "json" in sample.members:
                content = json.loads(_read_member(tar, sample.members["json"], _MAX_LABEL_BYTES))
                values = [content[name] for name in _CLASS_FIELDS if content.get(name) not in (None, "")]
                if values and not (_is_number(values[0]) and "cls" in sample.members):
                    return self._key_of(values[0]), ""
            if "cls" in sample.members and (
                text := _read_member(tar, sample.members["cls"], _MAX_LABEL_BYTES).decode().strip()
            ):
                return self._key_of(text), ""
        except ConfigError:
            raise
        except (tarfile.TarError, ValueError, AttributeError, RecursionError) as error:
            return "", f"{type(error).__name__}: {error}"
        return "", f"the sample has {', '.join(sample.members)}, none of which names a class"

    def _key_of(self, value: Any) -> str:
        """Return the class key of a label, which is a key, a name or a number."""
        if not _is_number(value):
            return self.glossary.canonical(str(value))
        if not self.glossary.numbers:
            raise ConfigError(
                f"ingest.class_list: the tars have label numbers ({value}) and no names; "
                "give `imagenet1k` or a file with a line for each class, in the order of the numbers"
            )
        return self.glossary.key_of(int(value)) or f"#{value}"

    def _read_classes(self) -> set[str]:
        """Read the keys of all classes from the labels of all samples."""
        keys: set[str] = set()
        for path in self.files:
            with self._open(path) as tar:
                keys |= {self._read_label(tar, sample)[0] for sample in _samples(tar)}
        return keys - {""}

    def _open(self, path: str) -> tarfile.TarFile:
        file: Any = self.filesystem.open_input_file(f"{self.path}/{path}")
        if not isinstance(self.filesystem, pafs.LocalFileSystem):
            file = io.BufferedReader(file, _BUFFER)
        try:
            return tarfile.open(fileobj=file, mode="r:", errors="backslashreplace")  # names in any encoding
        except tarfile.TarError as error:
            raise ConfigError(f"ingest.source: {path} cannot be read as a tar ({error}); download it again") from error


def _samples(tar: tarfile.TarFile) -> Iterator[Sample]:
    """Group neighbouring members whose names agree up to the first dot into samples."""
    seen: Counter[str] = Counter()
    sample: Sample | None = None
    for member in _regular_members(tar):
        key, extension = _split_name(member.name)
        if sample is None or key != sample.key or extension in sample.members:
            if sample:
                yield sample
            name = f"{key} again {seen[key]}" if seen[key] else key
            sample, seen[key] = Sample(key, name), seen[key] + 1
        sample.members[extension] = member
    if sample:
        yield sample


def _regular_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        yield from (member for member in tar if member.isreg() or member.islnk())
    except (tarfile.TarError, ValueError, OverflowError):  # damaged: `_error_at_end` reports it
        return


def _split_name(name: str) -> tuple[str, str]:
    """Split a member's path into WebDataset's key and extension, at the first dot after the folder."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int | None = None) -> bytes:
    if limit is not None and member.size > limit:
        raise tarfile.ReadError(f"{member.name} has {member.size} bytes, the limit is {limit}")
    try:
        file = tar.extractfile(member)
    except KeyError as error:  # a link to a missing member
        raise tarfile.ReadError(f"{member.name}: {error}") from error
    content = file.read() if file else b""
    if len(content) < member.size:
        raise tarfile.ReadError(f"{member.name} is cut short: {len(content)} of {member.size} bytes")
    return content


def _error_at_end(tar: tarfile.TarFile) -> str:
    """Check that a tar ends where tarfile stopped reading: only zeros follow, and not many. Returns the error or "".

    tarfile takes a broken header, or zeros in the middle, for the end, and all that follows would be lost silently.
    """
    file: Any = tar.fileobj
    file.seek(0, 2)
    size = file.tell()
    file.seek(min(tar.offset, size))
    rest = file.read(_MAX_PADDING + 1)
    if tar.offset < size and len(rest) <= _MAX_PADDING and not any(rest):
        return ""
    return f"the tar is cut short or broken at byte {tar.offset} of {size}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.lstrip("-").isdigit())


LAYOUT: Final = Layout(
    "webdataset",
    "*train*.tar (WebDataset)",
    lambda filesystem, path: has_shards(filesystem, path, "tar"),
    WebDataset,
)
