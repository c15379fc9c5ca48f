"""Layouts whose images are named by lists: `metadata` of Hugging Face's image folders, and `cub`."""

import csv
import json
import posixpath
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, load_glossary, resolve
from vlcp_ray.sources.folder import NO_CLASSES
from vlcp_ray.sources.image_files import ImageFile, read_files
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import limit_of, problem_of
from vlcp_ray.sources.reader import MAX_LABEL, Listing, Part, image_id, list_folders, list_some, split_of_folder
from vlcp_ray.sources.shards import ShardError, open_shard

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

_METADATA: Final = ("metadata.csv", "metadata.jsonl")
_FILE_NAME: Final = "file_name"
#: Columns of metadata that may name the class, the first that is there.
_LABELS: Final = ("label", "labels", "class_name", "class", "wnid", "cls", "category")
_CUB: Final = ("images.txt", "train_test_split.txt")
_MAX_LIST: Final = 2**30  # bytes
_PARTS: Final = 64  # enough for all workers
_ROWS: Final = 256  # of the smallest part


@dataclass(frozen=True)
class Entry:
    """An image of a list: the path of its file relative to the set, its split and its label, or ""."""

    path: str
    split: str
    label: str


class ListedImages:
    """Read the image files that a list names, with their classes and splits."""

    def __init__(
        self,
        filesystem: pafs.FileSystem,
        path: str,
        settings: "Ingest",
        layout: str,
        kind: str,
        entries: Sequence[Entry],
    ) -> None:
        """Sort the entries; no image is opened.

        Args:
            layout: its name.
            kind: of the list, for the description.

        Raises:
            ConfigError: a wanted class has no images.
        """
        self.filesystem, self.path, self.max_bytes = filesystem, path, settings.max_bytes
        self.layout, self.kind = layout, kind
        self.limit = limit_of(filesystem, path, settings.follow_links)
        glossary = load_glossary(settings.class_list)
        numbered = bool(entries) and all(entry.label.isdigit() for entry in entries if entry.label)
        if numbered and glossary.numbers:
            keys = [glossary.key_of(int(entry.label)) or f"#{entry.label}" if entry.label else "" for entry in entries]
        else:
            keys = [glossary.canonical(entry.label) for entry in entries]
        self.keys = frozenset(key for key in keys if key and not key.startswith("#"))
        self.classes: Classes = resolve(self.keys, settings.classes, glossary)
        wanted = set(self.classes.keys)
        rows = sorted(
            (entry.path, entry.split, key)
            for entry, key in zip(entries, keys, strict=True)
            if key in wanted or key not in self.keys
        )
        # As a table, so that a million entries are sent to the workers in a few copies of memory.
        columns = zip(*rows, strict=True) if rows else [(), (), ()]
        self.table = pa.table([pa.array(column, pa.string()) for column in columns], names=["path", "split", "key"])

    @property
    def splits(self) -> frozenset[str]:
        return frozenset(self.table["split"].unique().to_pylist())

    @property
    def description(self) -> str:
        return f"{self.kind} with {' and '.join(sorted(self.splits))}, {self.classes.summary(len(self.keys))}"

    def parts(self) -> Sequence[Part]:
        """List a part for some rows of the list; all splits are in each."""
        count = len(self.table)
        size = max(_ROWS, -(-count // _PARTS))
        return [Part("", "", start=start, end=min(start + size, count)) for start in range(0, count, size)]

    def images(self, part: Part, skipped: object = None, ids: bool = False) -> Iterator[Listing]:
        for row in self._rows(part):
            yield Listing(row["split"], row["key"], row["path"], image_id(row["split"], row["key"], row["path"]))

    def read(self, part: Part, done: Container[str], skipped: object = None) -> Iterator[pa.Table]:
        yield from read_files(self.filesystem, self._files(part, done), self.max_bytes)

    def _files(self, part: Part, done: Container[str]) -> Iterator[ImageFile]:
        rows = [row for row in self._rows(part) if row["path"] not in done]
        infos = self.filesystem.get_file_info([f"{self.path}/{row['path']}" for row in rows])
        is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        for row, info in zip(rows, infos, strict=True):
            problem = problem_of(info.path, self.limit) if is_local else ""
            name = row["path"]
            row_id = image_id(row["split"], row["key"], name)
            yield ImageFile(info.path, info.size or 0, name, row_id, row["key"], row["split"], problem)

    def _rows(self, part: Part) -> list[dict[str, str]]:
        rows: list[dict[str, str]] = self.table.slice(part.start, part.end - part.start).to_pylist()
        return rows


def _metadata_files(filesystem: pafs.FileSystem, path: str) -> list[tuple[str, str]]:
    """Find the lists in a folder, or in its folders of splits: their split, or "", and their relative path."""
    places = [("", "")] + [
        (split_of_folder(name), f"{name}/") for name, _ in list_folders(filesystem, path) if split_of_folder(name)
    ]
    named = [(split, f"{folder}{name}") for split, folder in places for name in _METADATA]
    infos = filesystem.get_file_info([f"{path}/{name}" for _, name in named])
    found = [one for one, info in zip(named, infos, strict=True) if info.is_file]
    in_splits = [one for one in found if one[0]]
    return in_splits or found


def _open_metadata(filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> ListedImages:
    limit = limit_of(filesystem, path, settings.follow_links)
    entries = [
        entry
        for split, name in _metadata_files(filesystem, path)
        for entry in _metadata_entries(_read(filesystem, path, name, limit), split, name, settings.class_key)
    ]
    kind = " and ".join(sorted({posixpath.basename(name) for _, name in _metadata_files(filesystem, path)}))
    return ListedImages(filesystem, path, settings, "metadata", f"the images of {kind}", _with_val(entries))


def _metadata_entries(text: str, split: str, name: str, class_key: str) -> Iterator[Entry]:
    """Yield the entries of a list.

    Args:
        split: of the folder of the list, or "" where a column, or the first folder of a file name, is the split.
        name: of the list, relative to the set.

    Raises:
        ConfigError: a column is missing, or a line cannot be read.
    """
    rows = _json_lines(text, name) if name.endswith("l") else csv.DictReader(text.splitlines())
    folder = posixpath.dirname(name)
    label = ""
    for number, row in enumerate(rows, 1):
        if number == 1:
            label = _label_column(row, name, class_key)
        file = row.get(_FILE_NAME)
        if not isinstance(file, str) or not file:
            raise ConfigError(f"ingest.source: {name}: row {number} has no {_FILE_NAME}; give the path of its image")
        value = row.get(label)
        text_of_label = "" if value is None else str(value).strip()
        if len(text_of_label) > MAX_LABEL:
            raise ConfigError(
                f"ingest.class_key: {name}: row {number}: {label} has {len(text_of_label)} characters, and is no class"
            )
        path = posixpath.normpath(posixpath.join(folder, file))
        if path.startswith(("../", "/")):
            raise ConfigError(f"ingest.source: {name}: row {number}: {file} leaves the image set")
        named = str(row.get("split") or (file.partition("/")[0] if "/" in file else ""))
        found = split or split_of_folder(named) or "train"
        yield Entry(path, found, text_of_label)


def _label_column(row: Mapping[str, Any], name: str, class_key: str) -> str:
    if _FILE_NAME not in row:
        raise ConfigError(f"ingest.source: {name} has no column {_FILE_NAME}; it has {list_some(map(str, row))}")
    if class_key:
        if class_key not in row:
            raise ConfigError(
                f"ingest.class_key: {name} has no column {class_key!r}; it has {list_some(map(str, row))}"
            )
        return class_key
    found = next((column for column in _LABELS if column in row), None)
    if found is None:
        raise ConfigError(
            f"ingest.class_key: {name} has the columns {list_some(map(str, row))}, none of which names a class "
            f"({', '.join(_LABELS)}); name the one that does"
        )
    return found


def _json_lines(text: str, name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"ingest.source: {name}: line {number} is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ConfigError(f"ingest.source: {name}: line {number} is no JSON object")
            yield row


def _with_val(entries: Iterable[Entry]) -> list[Entry]:
    """Take the images of test for val where there are none of val; else leave them out."""
    found = list(entries)
    if not any(entry.split == "val" for entry in found):
        found = [Entry(e.path, "val" if e.split == "test" else e.split, e.label) for e in found]
    return [entry for entry in found if entry.split != "test"]


def _open_cub(filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> ListedImages:
    limit = limit_of(filesystem, path, settings.follow_links)
    files, splits = (_numbered_lines(_read(filesystem, path, name, limit), name) for name in _CUB)
    if missing := [number for number in files if number not in splits]:
        raise ConfigError(f"ingest.source: {_CUB[1]} has no line of image {missing[0]} of {_CUB[0]}; download it again")
    entries = [
        Entry(f"images/{file}", "train" if splits[number] == "1" else "val", file.rpartition("/")[0])
        for number, file in files.items()
    ]
    return ListedImages(filesystem, path, settings, "cub", "the lists of CUB", entries)


def _numbered_lines(text: str, name: str) -> dict[str, str]:
    rows = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    if bad := next((number for number, (_, _, value) in enumerate(rows, 1) if not value), None):
        raise ConfigError(f"ingest.source: {name}: line {bad} is not a number and a value")
    if outside := next((value for _, _, value in rows if ".." in value.split("/") or value.startswith("/")), None):
        raise ConfigError(f"ingest.source: {name}: {outside} leaves the image set")
    return {number: value.strip() for number, _, value in rows}


def _read(filesystem: pafs.FileSystem, path: str, name: str, limit: str) -> str:
    try:
        file = open_shard(filesystem, f"{path}/{name}", limit)
        if file.size > _MAX_LIST:
            raise ShardError(f"it has {file.size} bytes, the limit is {_MAX_LIST}")
        return file.read().decode("utf-8-sig")
    except (ShardError, UnicodeDecodeError) as error:
        raise ConfigError(f"ingest.source: {name} cannot be read ({error}); write it as UTF-8") from error


def _is_cub(filesystem: pafs.FileSystem, path: str) -> bool:
    infos = filesystem.get_file_info([f"{path}/{name}" for name in (*_CUB, "images")])
    return [info.type for info in infos] == [pafs.FileType.File, pafs.FileType.File, pafs.FileType.Directory]


def _has_metadata(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether a list names the images; beside class folders it holds something else about them: captions."""
    if filesystem.get_file_info(path).is_file:
        return False
    lists = _metadata_files(filesystem, path)
    folders = {posixpath.join(path, posixpath.dirname(name)).rstrip("/") for _, name in lists}
    inner = [name for folder in folders for name, _ in list_folders(filesystem, folder)]
    return bool(folders) and all(name.lower() in NO_CLASSES for name in inner)


METADATA: Final = Layout("metadata", "images with metadata.csv or metadata.jsonl", _has_metadata, _open_metadata)
CUB: Final = Layout("cub", "CUB's images/ with images.txt and train_test_split.txt", _is_cub, _open_cub)
