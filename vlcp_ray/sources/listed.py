"""Layouts whose images are named by lists: `metadata` of Hugging Face's image folders, and `cub`."""

import csv
import io
import json
import posixpath
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.archives import has_tars
from vlcp_ray.sources.classes import Classes, load_glossary, resolve
from vlcp_ray.sources.folder import NO_CLASSES
from vlcp_ray.sources.image_files import ImageFile, is_image, read_files
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import limit_of, problem_of
from vlcp_ray.sources.reader import (
    MAX_LABEL,
    Listing,
    Part,
    check_class_count,
    has_shards,
    image_id,
    list_folder,
    list_folders,
    list_some,
    split_of_folder,
    utf8,
)
from vlcp_ray.sources.shards import ShardError, open_shard
from vlcp_ray.sources.table_columns import MAX_NAME

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

_METADATA: Final = ("metadata.csv", "metadata.jsonl")
_FILE_NAME: Final = "file_name"
#: Columns of metadata that may name the class, the first that is there.
_LABELS: Final = ("label", "labels", "class_name", "class", "wnid", "cls", "category")
#: Values of the column `split`.
_SPLITS: Final = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("val", "valid", "validation"), "val")
    | dict.fromkeys(("dev", "eval", "evaluation"), "dev")
    | dict.fromkeys(("test", "testing"), "test")
)
#: The splits whose images may be val, the first that is there.
_VAL: Final = ("val", "dev", "test")
_CUB: Final = ("images.txt", "train_test_split.txt")
_MAX_LIST: Final = 2**30  # bytes
_FIRST_BYTES: Final = 2**16  # of a list, to see whether it is one of images
_FOLDERS_CHECKED: Final = 8
_MAX_NAME_PART: Final = 255  # bytes; NAME_MAX of Linux
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
            ConfigError: a wanted class has no images, or there are too many labels for classes.
        """
        self.filesystem, self.path, self.max_bytes = filesystem, path, settings.max_bytes
        self.layout, self.kind = layout, kind
        self.limit = limit_of(filesystem, path, settings.follow_links)
        glossary = load_glossary(settings.class_list)
        numbered = bool(entries) and all(entry.label.isdecimal() for entry in entries if entry.label)
        if numbered and glossary.numbers:
            keys = [glossary.key_of(int(entry.label)) or f"#{entry.label}" if entry.label else "" for entry in entries]
        else:
            keys = [glossary.canonical(entry.label) for entry in entries]
        self.keys = frozenset(key for key in keys if key and not key.startswith("#"))
        check_class_count(self.keys)
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
        """Yield the image files of a part; their sizes are not asked for, which would be a request for each."""
        is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        for row in self._rows(part):
            name = row["path"]
            if name not in done:
                path = f"{self.path}/{name}"
                problem = _name_problem(name) or (problem_of(path, self.limit) if is_local else "")
                row_id = image_id(row["split"], row["key"], name)
                yield ImageFile(path, 0, name, row_id, row["key"], row["split"], problem)

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
    entries: dict[str, Entry] = {}
    lists = _metadata_files(filesystem, path)
    for split, name in lists:
        text = _read(filesystem, path, name, limit)
        for number, entry in enumerate(_metadata_entries(text, split, name, settings.class_key), 1):
            if entry.path in entries:
                raise ConfigError(
                    f"ingest.source: {name}: row {number} names {entry.path} again; keep one row of each image"
                )
            entries[entry.path] = entry
    kind = " and ".join(sorted({posixpath.basename(name) for _, name in lists}))
    return ListedImages(filesystem, path, settings, "metadata", f"the images of {kind}", _with_val(entries.values()))


def _metadata_entries(text: str, split: str, name: str, class_key: str) -> Iterator[Entry]:
    """Yield the entries of a list.

    Args:
        split: of the folder of the list, or "" where a column, or the first folder of a file name, is the split.
        name: of the list, relative to the set.

    Raises:
        ConfigError: a column is missing, or a row cannot be read.
    """
    rows = _json_lines(text, name) if name.endswith("l") else _csv_rows(text, name)
    column = ""
    for number, row in enumerate(rows, 1):
        if number == 1:
            column = _label_column(row, name, class_key)
        where = f"{name}: row {number}"
        path = _path_of(row, posixpath.dirname(name), where)
        label = _label_of(row.get(column), column, where)
        yield Entry(path, split or _split_of(row, path, where), label)


def _path_of(row: Mapping[str, Any], folder: str, where: str) -> str:
    """Return the path of a row's image relative to the set; a file name is relative to the folder of its list.

    Raises:
        ConfigError: there is none, or it leaves the set.
    """
    file = row.get(_FILE_NAME)
    if not isinstance(file, str) or not file:
        raise ConfigError(f"ingest.source: {where} has no {_FILE_NAME}; give the path of its image")
    path = posixpath.normpath(posixpath.join(folder, utf8(file)))
    if path == ".." or path.startswith(("../", "/")):
        raise ConfigError(f"ingest.source: {where}: {utf8(file)} leaves the image set")
    return path


def _label_of(value: Any, column: str, where: str) -> str:
    """Return a label as text; "" for a missing one, which is null, NaN, -1 or empty.

    Raises:
        ConfigError: it is no name and no number, or it is too long.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | dict):
        raise ConfigError(
            f"ingest.class_key: {where}: {column} is not a name or a number; give the column that holds the class"
        )
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    text = "" if value is None or value != value else utf8(str(value)).strip()
    if len(text) > MAX_LABEL:
        raise ConfigError(f"ingest.class_key: {where}: {column} has {len(text)} characters, and is no class")
    return "" if text == "-1" else text


def _split_of(row: Mapping[str, Any], path: str, where: str) -> str:
    """Return the split of a row: that of its column `split`, else that of the first folder of its path, else train.

    Raises:
        ConfigError: the column has a value that is no split.
    """
    value = row.get("split")
    text = "" if value is None else str(value).strip()
    if not text:
        folder, slash, _ = path.partition("/")
        return (split_of_folder(folder) if slash else "") or "train"
    if text.lower() not in _SPLITS:
        raise ConfigError(
            f"ingest.source: {where} has the split {text[:40]!r}; write one of those that are read: "
            f"{', '.join(_SPLITS)}, or leave it empty"
        )
    return _SPLITS[text.lower()]


def _name_problem(name: str) -> str:
    """Return why no file can have a name, or "": asking a disk or a store for such a file fails in its own way."""
    if "\0" in name:
        return "a file name with a NUL"
    if len(name) > MAX_NAME:
        return f"a file name of {len(name)} characters, the limit is {MAX_NAME}"
    longest = max(len(part.encode()) for part in name.split("/"))
    if longest > _MAX_NAME_PART:
        return f"a file name with a part of {longest} bytes, the limit is {_MAX_NAME_PART}"
    return ""


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


def _csv_rows(text: str, name: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        yield from reader
    except csv.Error as error:
        raise ConfigError(f"ingest.source: {name}: line {reader.line_num} cannot be read ({error})") from error


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


def _with_val(entries: Collection[Entry]) -> list[Entry]:
    """Take the images of dev for val where there are none of val, or those of test where there are none of both."""
    present = {entry.split for entry in entries}
    used = {"train": "train", next((split for split in _VAL if split in present), "val"): "val"}
    return [Entry(entry.path, used[entry.split], entry.label) for entry in entries if entry.split in used]


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
    """Return whether there is a list that names the images, and not one beside class folders, tars or parquet files.

    Beside those it holds something else about the images, such as captions.
    """
    if filesystem.get_file_info(path).is_file:
        return False
    lists = _metadata_files(filesystem, path)
    if not lists or has_shards(filesystem, path, "parquet") or has_tars(filesystem, path):
        return False
    folders = {f"{path}/{posixpath.dirname(name)}".rstrip("/") for _, name in lists}
    if any(_has_classes(filesystem, folder) for folder in folders | _splits_beside(filesystem, path, folders)):
        return False
    named = any(_names_files(filesystem, path, name) for _, name in lists)
    return named or any(_has_images(filesystem, folder) for folder in folders)


def _splits_beside(filesystem: pafs.FileSystem, path: str, folders: Container[str]) -> set[str]:
    """Return the folders of splits in a set: of train only, where the set itself is not one of the folders of lists."""
    splits = {inner: split_of_folder(name) for name, inner in list_folders(filesystem, path)}
    return {inner for inner, split in splits.items() if split == "train" or (split and path in folders)}


def _has_classes(filesystem: pafs.FileSystem, folder: str) -> bool:
    return any(name.lower() not in NO_CLASSES for name, _ in list_folders(filesystem, folder))


def _has_images(filesystem: pafs.FileSystem, folder: str) -> bool:
    """Return whether there are images in a folder or in its first folders."""
    inner = [path for _, path in list_folders(filesystem, folder)[:_FOLDERS_CHECKED]]
    infos = [info for path in [folder, *inner] for info in list_folder(filesystem, path)]
    return any(info.is_file and is_image(info.base_name) for info in infos)


def _names_files(filesystem: pafs.FileSystem, path: str, name: str) -> bool:
    """Return whether the header of a csv, or the first object of a jsonl, has the column file_name.

    A list that cannot be read has none; where it is opened, the error is reported.
    """
    try:
        file = open_shard(filesystem, f"{path}/{name}", limit_of(filesystem, path, False))
        file.window = _FIRST_BYTES
        text = file.read(_FIRST_BYTES).decode("utf-8-sig", "replace")
        if name.endswith("l"):
            return _FILE_NAME in next(_json_lines(text, name), {})
        return _FILE_NAME in next(csv.reader(io.StringIO(text, newline="")), [])
    except (ShardError, ConfigError):
        return False


METADATA: Final = Layout(
    "metadata", "images with metadata.csv or metadata.jsonl", _has_metadata, _open_metadata, has_class_key=True
)
CUB: Final = Layout("cub", "CUB's images/ with images.txt and train_test_split.txt", _is_cub, _open_cub)
