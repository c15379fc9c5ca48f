"""The layout `webdataset`: tars whose consecutive members of one key form a sample: an image and `cls` or `json`."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, expand, is_wnid, load_glossary, resolve
from vlcp_ray.sources.image_files import SUFFIXES
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import limit_of
from vlcp_ray.sources.reader import (
    MAX_LABEL,
    Listing,
    Part,
    Row,
    check_class_count,
    find_shards,
    format_split_counts,
    has_shards,
    image_id,
    list_some,
    lost_shard,
    tables,
    utf8,
)
from vlcp_ray.sources.shards import ShardError, open_shard
from vlcp_ray.sources.tars import Member, Tar

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

#: Fields of a sample's json that may name its class; the first that has a value is used.
_CLASS_FIELDS: Final = ("wnid", "class_name", "class", "label", "cls")
_EXTENSION: Final = re.compile(r"([a-z_][a-z0-9_-]*\.)*[^.]*")
_READ: Final = SUFFIXES | {".cls", ".json"}
_MAX_LABEL_BYTES: Final = 2**20  # of a cls or json member; a longer one is broken
_MAX_MEMBERS: Final = 64  # of a sample that are kept; others are ignored


@dataclass(frozen=True)
class Sample:
    """The members of a key by their extension; `name` is the key, with a number if the tar had the key before."""

    key: str
    name: str
    members: dict[str, Member] = field(default_factory=dict)

    def image(self) -> Member | None:
        """Return the member that is the image: of `jpg`, or of the only one like `input.jpg`."""
        exact = next((m for ext, m in self.members.items() if f".{ext}" in SUFFIXES), None)
        others = [m for ext, m in self.members.items() if f".{ext.rpartition('.')[2]}" in SUFFIXES]
        return exact or (others[0] if len(others) == 1 else None)


class WebDataset:
    """Read tars named after their splits: `imagenet1k-train-0000.tar`, `val/000.tar`; without such a word, train."""

    layout = "webdataset"

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """List the tars; all labels are read if neither `classes` nor `class_list` names the classes.

        Raises:
            ConfigError: label numbers have no names, or a tar cannot be read.
        """
        self.filesystem, self.max_bytes = filesystem, settings.max_bytes
        self.limit = limit_of(filesystem, path, settings.follow_links)
        self.path, self.files = find_shards(filesystem, path, "tar", self.limit)
        self.glossary = load_glossary(settings.class_list)
        self.is_subset = bool(settings.classes)
        self.fields = (settings.class_key,) if settings.class_key else _CLASS_FIELDS
        # What `tench` means is known by the labels only: a set may have this name, or the wnid.
        is_exact = all(self.glossary.is_exact(name) for name in settings.classes)
        named = expand(settings.classes, self.glossary) if is_exact else self._read_classes()
        self.keys = frozenset(named or self.glossary.numbers or self._read_classes())
        self.classes: Classes = resolve(self.keys, settings.classes, self.glossary)

    @property
    def splits(self) -> frozenset[str]:
        return frozenset(self.files.values())

    @property
    def description(self) -> str:
        return f"WebDataset with {format_split_counts(self.files)}, {self.classes.summary(len(self.keys))}"

    def parts(self) -> Sequence[Part]:
        return [Part(path, split) for path, split in sorted(self.files.items())]

    def images(self, part: Part, skipped: object = None, ids: bool = False) -> Iterator[Listing]:
        try:
            tar = self._open(part.path)
        except ShardError as error:
            raise ValueError(f"{part.path}: {error}") from error
        wanted = frozenset(self.classes.keys)
        for sample in _samples(tar):
            key, _ = self._read_label(tar, sample)
            if key in wanted or not self._is_class(key):
                row_id = image_id(part.split, key, sample.key)
                yield Listing(part.split, key, f"{part.path}:{sample.name}", row_id)
        if error_at_end := tar.error_at_end():
            raise ValueError(f"{part.path}: {error_at_end}")

    def read(self, part: Part, done: Container[str], skipped: object = None) -> Iterator[pa.Table]:
        yield from tables(self._rows(part, done))

    def _rows(self, part: Part, done: Container[str]) -> Iterator[Row]:
        try:
            tar = self._open(part.path)
        except ShardError as error:
            yield lost_shard(part, str(error))
            return
        wanted = frozenset(self.classes.keys)
        for sample in _samples(tar):
            if f"{part.path}:{sample.name}" not in done:
                key, detail = self._read_label(tar, sample)
                if key in wanted or not self._is_class(key):
                    yield self._make_row(tar, part, sample, key, detail)
        if error_at_end := tar.error_at_end():
            source = f"{part.path}:from byte {tar.end}"
            yield Row(image_id(part.split, "", source), "", part.split, source, b"", "unreadable", error_at_end)

    def _is_class(self, key: str) -> bool:
        """Return whether a key is a class; if `ingest.classes` selects some, any name may be one of the others."""
        return key in self.keys or (self.is_subset and key != "" and not key.startswith("#"))

    def _make_row(self, tar: Tar, part: Part, sample: Sample, key: str, detail: str) -> Row:
        content, reason = b"", "" if key else "no_label"
        if not reason or sample.image() is None:
            content, reason, detail = self._read_image(tar, sample)
        source = f"{part.path}:{sample.name}"
        return Row(image_id(part.split, key, sample.key), key, part.split, source, content, reason, detail)

    def _read_image(self, tar: Tar, sample: Sample) -> tuple[bytes, str, str]:
        """Return the bytes of a sample's image and empty strings, or no bytes, the reason and the detail."""
        member = sample.image()
        if member is None:
            return b"", "unreadable", f"the sample has {list_some(sample.members)} and no image"
        if member.content is None:
            return b"", "unreadable", f"{member.name} is {member.problem}"
        if member.content.size > self.max_bytes:
            return b"", "too_large", f"{member.content.size} bytes, the limit is {self.max_bytes}"
        try:
            return tar.read(member.content), "", ""
        except ShardError as error:
            return b"", "unreadable", f"{member.name}: {error}"

    def _read_label(self, tar: Tar, sample: Sample) -> tuple[str, str]:
        """Return the class key of a sample and "", or "" and why it has none."""
        try:
            if "json" in sample.members:
                value = _label_in_json(_read_text(tar, sample.members["json"]), self.fields)
                if value is not None and not (_is_number(value) and "cls" in sample.members):
                    return self._key_of(value), ""
            if "cls" in sample.members and (text := _read_text(tar, sample.members["cls"]).strip()):
                return self._key_of(text), ""
        except _LabelError as error:
            return "", str(error)
        return "", f"the sample has {list_some(sample.members)}, none of which names a class"

    def _key_of(self, value: Any) -> str:
        """Return the class key of a label, which is a key, a name or a number."""
        if not _is_number(value):
            if len(str(value)) > MAX_LABEL:
                raise _LabelError(f"the label has {len(str(value))} characters, the limit is {MAX_LABEL}")
            return self.glossary.canonical(utf8(str(value)))
        if not self.glossary.numbers:
            raise ConfigError(
                f"ingest.class_list: the tars have label numbers ({value}) and no names; "
                "give `imagenet1k` or a file with a line for each class, in the order of the numbers"
            )
        return self.glossary.key_of(int(value)) or f"#{value}"

    def _read_classes(self) -> set[str]:
        """Read the keys of all classes from the labels of all samples; tars that cannot be read are left out.

        Raises:
            ConfigError: no tar can be read, or no sample names a class.
        """
        keys: set[str] = set()
        errors: list[str] = []
        example: Sample | None = None
        for path in self.files:
            try:
                tar = self._open(path)
            except ShardError as error:
                errors.append(f"{path} cannot be read as a tar ({error})")
                continue
            for sample in _samples(tar):
                keys.add(self._read_label(tar, sample)[0])
                example = example or sample
                check_class_count(keys)
        if len(errors) == len(self.files):
            raise ConfigError(f"ingest.source: {errors[0]}; download it again")
        if not keys - {""} and example:
            raise ConfigError(_without_class(self.path, self.files, example))
        return keys - {""}

    def _open(self, path: str) -> Tar:
        return Tar(open_shard(self.filesystem, f"{self.path}/{path}", self.limit))


def _without_class(path: str, files: Mapping[str, str], sample: Sample) -> str:
    """Say what to do about tars whose samples name no class."""
    if any(extension in ("tar", "gz", "zip") for extension in sample.members):
        tar, folder = f"{path}/{next(iter(files))}", f"{path}/train"
        return (
            f"ingest.source: {tar} holds other archives ({next(iter(sample.members.values())).name}), as the original "
            f"archive of ImageNet; unpack them into a folder for each class: mkdir -p {folder} && "
            f"tar -xf {tar} -C {folder} && for t in {folder}/*.tar; do mkdir ${{t%.tar}} && tar -xf $t -C ${{t%.tar}} "
            "&& rm $t; done"
        )
    if all(is_wnid(file.rpartition("/")[2].removesuffix(".tar")) for file in files):
        return (
            f"ingest.source: each tar of {path} is a class; unpack them into a folder each: cd {path} && "
            "for t in *.tar; do mkdir ${t%.tar} && tar -xf $t -C ${t%.tar} && rm $t; done"
        )
    return (
        f"ingest.class_key: no sample of {path} names a class; they have {list_some(sample.members)}; set "
        "ingest.class_key to the field of the json that does"
    )


class _LabelError(Exception):
    """A label that cannot be read; the message says why."""


def _samples(tar: Tar) -> Iterator[Sample]:
    """Group neighbouring members whose names agree up to the first dot into samples."""
    seen: set[int] = set()  # digests, so that memory is some 70 bytes for each sample
    repeated: Counter[int] = Counter()
    sample: Sample | None = None
    for member in tar:
        key, extension = _split_name(member.name)
        if member.content is None and f".{extension}" not in SUFFIXES:
            continue  # a device or a link to nothing that is no image
        if sample is None or key != sample.key or extension in sample.members:
            if sample:
                yield sample
            digest = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
            if digest in seen:
                repeated[digest] += 1
            seen.add(digest)
            sample = Sample(key, f"{key} again {repeated[digest]}" if digest in repeated else key)
        if len(sample.members) < _MAX_MEMBERS:
            sample.members[extension] = member
    if sample:
        yield sample


def _split_name(name: str) -> tuple[str, str]:
    """Split a member's path into WebDataset's key and extension, at the first dot after the folder.

    At the last dot where an image or a label has numbers or words before its suffix: 22.05.png is not of the sample 22.
    """
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    is_read = f".{extension.rpartition('.')[2].lower()}" in _READ
    if is_read and not _EXTENSION.fullmatch(extension.lower()):
        stem, _, extension = file.rpartition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _read_text(tar: Tar, member: Member) -> str:
    """Read a cls or json member.

    Raises:
        _LabelError: it is too long, or is no text.
    """
    if member.content is None:
        raise _LabelError(f"{member.name} is {member.problem}")
    if member.content.size > _MAX_LABEL_BYTES:
        raise _LabelError(f"{member.name} has {member.content.size} bytes, the limit is {_MAX_LABEL_BYTES}")
    try:
        return tar.read(member.content).decode()
    except (ShardError, UnicodeDecodeError) as error:
        raise _LabelError(f"{member.name}: {error}") from error


def _label_in_json(text: str, fields: Sequence[str]) -> Any:
    """Return the first of some fields of a json that has a value, or None.

    Raises:
        _LabelError: it is no json object.
    """
    try:
        content = json.loads(text)
        values = [content[name] for name in fields if content.get(name) not in (None, "")]
    except (ValueError, AttributeError, RecursionError) as error:
        raise _LabelError(f"{type(error).__name__}: {error}") from error
    return values[0] if values else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value) is not None)


LAYOUT: Final = Layout(
    "webdataset",
    "*train*.tar (WebDataset)",
    lambda filesystem, path: has_shards(filesystem, path, "tar"),
    WebDataset,
    has_class_key=True,
)
