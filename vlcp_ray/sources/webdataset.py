"""The layout `webdataset`: tars whose consecutive members of one key form a sample: an image and `cls` or `json`."""

import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.archives import check_tars, has_tars, refusal
from vlcp_ray.sources.classes import Classes, expand, load_glossary, resolve
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
    image_id,
    list_some,
    lost_shard,
    tables,
    utf8,
)
from vlcp_ray.sources.samples import MAX_LABEL_BYTES, Sample, samples
from vlcp_ray.sources.shards import ShardError
from vlcp_ray.sources.tars import EXTENSIONS, Member, Tar, open_tar

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

#: Fields of a sample's json that may name its class; the first that has a value is used.
_CLASS_FIELDS: Final = ("wnid", "class_name", "class", "label", "cls")


class WebDataset:
    """Read tars named after their splits: `imagenet1k-train-0000.tar`, `val/000.tar.gz`; without such a word, train.

    Memory: one image and one label; of a tar that is packed with gzip 8 MiB more.
    """

    layout = "webdataset"

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """List the tars; all labels are read if neither `classes` nor `class_list` names the classes.

        Raises:
            ConfigError: the tars are archives of other files, label numbers have no names, or no tar can be read.
        """
        self.filesystem, self.max_bytes = filesystem, settings.max_bytes
        self.limit = limit_of(filesystem, path, settings.follow_links)
        self.path, self.files = find_shards(filesystem, path, EXTENSIONS, self.limit)
        if settings.layout == "auto":
            check_tars(filesystem, self.path, self.files, self.limit)
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
        for sample in samples(tar):
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
        for sample in samples(tar, self.max_bytes):
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
            for sample in samples(tar):
                keys.add(self._read_label(tar, sample)[0])
                if example is None or (sample.is_labelled() and not example.is_labelled()):
                    example = sample
                check_class_count(keys)
        if len(errors) == len(self.files):
            raise ConfigError(f"ingest.source: {errors[0]}; download it again")
        if not keys - {""} and example:
            raise ConfigError(_without_class(self.filesystem, self.path, self.files, example))
        return keys - {""}

    def _open(self, path: str) -> Tar:
        return open_tar(self.filesystem, f"{self.path}/{path}", self.limit)


def _without_class(filesystem: pafs.FileSystem, path: str, files: Mapping[str, str], sample: Sample) -> str:
    """Say what to do about tars whose samples name no class."""
    if not sample.is_labelled():
        return refusal(filesystem, path, files, sample)
    return (
        f"ingest.class_key: no sample of {path} names a class; they have {list_some(sample.members)}; set "
        "ingest.class_key to the field of the json that does"
    )


class _LabelError(Exception):
    """A label that cannot be read; the message says why."""


def _read_text(tar: Tar, member: Member) -> str:
    """Read a cls or json member.

    Raises:
        _LabelError: it is too long, or is no text.
    """
    if member.content is None:
        raise _LabelError(f"{member.name} is {member.problem}")
    if member.content.size > MAX_LABEL_BYTES:
        raise _LabelError(f"{member.name} has {member.content.size} bytes, the limit is {MAX_LABEL_BYTES}")
    try:
        return tar.read(member.content).decode("utf-8-sig")
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
    "webdataset", "*train*.tar or .tar.gz (WebDataset)", has_tars, WebDataset, has_class_key=True, reads_all=True
)
