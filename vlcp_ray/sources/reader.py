"""The interface of a layout: the parts of an image set, its unchecked rows, and functions to find its files."""

import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple, Protocol

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes
from vlcp_ray.sources.local_files import suffix_of, walk

#: The columns of unchecked rows. `class_key` is a key of `Classes`, "" for an image without a label. `source` is unique
#: in the set: the file, tar member or table row with the image. `reason` and `detail` are set if it could not be read.
RAW: Final = pa.schema(
    [(name, pa.string()) for name in ("image_id", "class_key", "split", "source")]
    + [("image", pa.binary())]
    + [(name, pa.string()) for name in ("reason", "detail")]
)

#: An extension without its dot, in lower case, or several of one kind: "parquet", ("tar", "tar.gz").
Extensions = str | tuple[str, ...]
#: Characters of a label: a longer one is a text and no class.
MAX_LABEL: Final = 1024
_MAX_CLASSES: Final = 100_000  # ImageNet-21k has 21,841
_LISTED: Final = 8
_MAX_ROWS: Final = 256
_MAX_BYTES: Final = 32 * 2**20
_SPLITS: Final = {"train": "train", "training": "train"} | dict.fromkeys(("val", "valid", "validation"), "val")
#: A folder that is a split: the whole name, or with an ending as in train.X1, val_256, train2017 and test_set.
_SPLIT_FOLDER: Final = re.compile(
    r"(train|training|val|valid|validation|test|testing)([ _-]?(set|data|dataset|images|imgs))?(\.\w+|[_-]?\d\w*)?"
)
_listings: ContextVar[dict[str, list[pafs.FileInfo]] | None] = ContextVar("listings", default=None)
_FOLDERS_CHECKED: Final = 8  # enough to find data/, train/ and val/ without listing a thousand class folders
_TEST: Final = ("test", "testing")


class Row(NamedTuple):
    """One row of RAW."""

    image_id: str
    class_key: str
    split: str
    source: str
    image: bytes
    reason: str = ""
    detail: str = ""


class Listing(NamedTuple):
    """An image of a set that was not read: its split, its class key or "", its `source`, and its id if asked for."""

    split: str
    class_key: str
    source: str
    image_id: str = ""


@dataclass(frozen=True)
class Part:
    """A part of an image set that one worker reads.

    Args:
        path: of its file or folder, relative to the set.
        split: train or val.
        class_key: the class of all its rows; "" where each row has its own.
        start, end: the half-open range of row groups of a parquet file, or of lines of a list; an end of 0 is the end
            of the file.
    """

    path: str
    split: str
    class_key: str = ""
    start: int = 0
    end: int = 0


class Source(Protocol):
    """A labelled image set that is read in independent parts."""

    #: The name of its layout.
    layout: str

    @property
    def description(self) -> str:
        """The layout, the splits and the number of classes, for the log."""

    @property
    def splits(self) -> frozenset[str]:
        """The splits, as far as files and folders tell: train, val."""

    @property
    def classes(self) -> Classes:
        """The wanted classes, in the order of their labels."""

    def parts(self) -> Sequence[Part]:
        """List all parts with wanted rows; a set of ImageNet's size has some thousands."""

    def images(self, part: Part, skipped: Counter[str] | None = None, ids: bool = False) -> Iterator[Listing]:
        """List the images of a part without reading them: the rows that `read` would yield.

        Args:
            skipped: as of `read`.
            ids: whether their ids are needed. In tables without file names they are those of the images' bytes.

        Raises:
            ValueError: the part, or the rest of it, cannot be read.
        """

    def read(self, part: Part, done: Container[str], skipped: Counter[str] | None = None) -> Iterator[pa.Table]:
        """Yield the wanted rows of a part, except those whose `source` is in `done`, as tables of the schema RAW.

        Args:
            skipped: gets the number of files that are not read, because they are no images, by their suffix.

        Raises:
            ValueError: the part as a whole cannot be read.
        """


def tables(rows: Iterable[Row]) -> Iterator[pa.Table]:
    """Group rows into tables of at most 256 rows and about 32 MiB, so that a part of any size can be streamed."""
    pending: list[Row] = []
    size = 0
    for row in rows:
        pending.append(row)
        size += len(row.image) + len(row.source)
        if len(pending) == _MAX_ROWS or size >= _MAX_BYTES:
            yield _table(pending)
            pending, size = [], 0
    if pending:
        yield _table(pending)


def _table(rows: Sequence[Row]) -> pa.Table:
    columns = zip(zip(*rows, strict=True), RAW.types, strict=True)
    return pa.Table.from_arrays([pa.array(values, dtype) for values, dtype in columns], schema=RAW)


def image_id(split: str, class_key: str, name: str) -> str:
    """Build the id of an image from its split, its class and its name in the set; parts such as `..` are dropped."""
    return "/".join((split, class_key, *(part for part in name.split("/") if part not in ("", ".", ".."))))


def lost_shard(part: Part, error: str) -> Row:
    """Make the rejected row of a shard that cannot be read at all: the number of its rows is not known."""
    groups = f"row groups {part.start} to {part.end - 1}" if part.end else "whole file"
    name = f"{part.path}:{groups}"
    return Row(image_id(part.split, "", name), "", part.split, name, b"", "unreadable", f"{error}; download it again")


def utf8(text: str) -> str:
    """Escape the characters that UTF-8 has no bytes for: a lone surrogate, as json can have it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def list_some(names: Iterable[str]) -> str:
    """List the first names: `jpg, json, ...`."""
    first = list(islice(names, _LISTED + 1))
    return ", ".join([*first[:_LISTED], *(["..."] if first[_LISTED:] else [])])


def check_class_count(keys: Collection[str]) -> None:
    """Refuse labels that are no classes, such as a caption for each image.

    Raises:
        ConfigError: there are more than 100,000.
    """
    if len(keys) > _MAX_CLASSES:
        raise ConfigError(
            f"ingest.class_list: the labels of the image set have more than {_MAX_CLASSES:,} values, so they are no "
            "classes; select classes with ingest.classes, or give the list of them"
        )


def split_of(name: str) -> str:
    """Find the split in the words of a file or folder name: train, val, test, or "" if it has no such word."""
    for word in re.split(r"[^a-z]+", name.lower()):
        if word in _SPLITS:
            return _SPLITS[word]
        if word in _TEST:
            return "test"
    return ""


def split_of_folder(name: str) -> str:
    """Return the split that a folder of class folders is: train, val, test, or "" if it is none.

    Only a whole name counts: "test tube" is a class.
    """
    found = _SPLIT_FOLDER.fullmatch(name.lower())
    return split_of(found[1]) if found else ""


def has_extension(name: str, extensions: Extensions) -> bool:
    """Return whether a file name has one of the extensions, in lower case or capitals."""
    return bool(suffix_among(name, extensions))


def suffix_among(name: str, extensions: Extensions) -> str:
    """Return the end of a file name that is one of the extensions, as it is written, with its dot: ".tar.gz", or ""."""
    ends = (f".{extension}" for extension in _as_tuple(extensions))
    return next((name[-len(end) :] for end in ends if name.lower().endswith(end)), "")


def _as_tuple(extensions: Extensions) -> tuple[str, ...]:
    return (extensions,) if isinstance(extensions, str) else extensions


def find_shards(
    filesystem: pafs.FileSystem, path: str, extensions: Extensions, limit: str
) -> tuple[str, dict[str, str]]:
    """Find all files with one of some extensions, at a path or below it.

    The split of a file is a word in its path, train if there is none. If no file is val, those of test are val.

    Args:
        limit: the folder that links may not leave, of a local set; what leaves it is found, but cannot be opened.

    Returns the folder of the files, and their relative paths with their splits.

    Raises:
        ConfigError: there is no such file.
    """
    if filesystem.get_file_info(path).is_file:
        path, _, name = path.rpartition("/")
        return path, {name: "train"}
    if isinstance(filesystem, pafs.LocalFileSystem):
        suffixes = {suffix_of(f"x.{extension}") for extension in _as_tuple(extensions)}
        found = (file.path[len(path) + 1 :] for file in walk(path, suffixes, limit))
        # A folder that is a link may have any name.
        names = sorted(name for name in found if has_extension(name, extensions) or suffix_of(name) not in suffixes)
    else:
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
        names = sorted(i.path[len(path) + 1 :] for i in infos if i.is_file and has_extension(i.base_name, extensions))
        names = [name for name in names if not is_hidden(name)]
    if not names:
        raise ConfigError(f"ingest.source: {path} has no .{_as_tuple(extensions)[0]} file")
    splits = {name: split_of(name) or "train" for name in names}
    if "val" not in splits.values():
        splits = {name: "val" if split == "test" else split for name, split in splits.items()}
    return path, {name: split for name, split in splits.items() if split != "test"}


@contextmanager
def listings_kept() -> Iterator[None]:
    """List each folder once while a set is recognised and opened."""
    token = _listings.set({})
    try:
        yield
    finally:
        _listings.reset(token)


def list_folder(filesystem: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """List what is in a folder itself, without hidden files and folders; nothing if there is no such folder."""
    kept = _listings.get()
    if kept is None or path not in kept:
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        found = [info for info in infos if info.base_name and not is_hidden(info.base_name)]
        if kept is None:
            return found
        kept[path] = found
    return kept[path]


def has_shards(filesystem: pafs.FileSystem, path: str, extensions: Extensions) -> bool:
    """Return whether a path is a file with one of some extensions, or a folder with such files: see `near_shards`."""
    info = filesystem.get_file_info(path)
    if info.is_file:
        return has_extension(info.base_name, extensions)
    return any(True for _ in near_shards(filesystem, path, extensions))


def near_shards(filesystem: pafs.FileSystem, path: str, extensions: Extensions) -> Iterator[str]:
    """Yield the paths of files with one of some extensions in a folder, its first folders, or those of splits in them.

    One folder is listed after the other, as more are asked for.
    """
    folders = [folder for _, folder in list_folders(filesystem, path)[:_FOLDERS_CHECKED]]
    for folder in [path, *folders]:
        yield from (f"{folder}/{name}" for name in list_shards(filesystem, folder, extensions))
    for folder in folders:
        # <configuration>/<split>/0000.parquet, as the hub converts sets
        for name, inner in list_folders(filesystem, folder)[:_FOLDERS_CHECKED]:
            if split_of_folder(name.removeprefix("partial-")):
                yield from (f"{inner}/{shard}" for shard in list_shards(filesystem, inner, extensions))


def list_shards(filesystem: pafs.FileSystem, folder: str, extensions: Extensions) -> list[str]:
    """List the names of the files with one of some extensions in a folder itself, without hidden ones."""
    infos = list_folder(filesystem, folder)
    return [info.base_name for info in infos if info.is_file and has_extension(info.base_name, extensions)]


def list_folders(filesystem: pafs.FileSystem, path: str) -> list[tuple[str, str]]:
    """List the names and paths of the folders in a folder, sorted, without hidden ones."""
    infos = list_folder(filesystem, path)
    return sorted((info.base_name, info.path) for info in infos if info.type == pafs.FileType.Directory)


def is_hidden(path: str) -> bool:
    """Return whether a part of a path begins with a dot, as files such as .DS_Store and .ipynb_checkpoints do."""
    return any(part.startswith(".") for part in path.split("/"))


def format_split_counts(files: Mapping[str, str]) -> str:
    """Format the number of files of each split: "2 train files and 1 val file"."""
    splits = Counter(files.values())
    return " and ".join(f"{count} {split} file{'s' * (count > 1)}" for split, count in sorted(splits.items()))
