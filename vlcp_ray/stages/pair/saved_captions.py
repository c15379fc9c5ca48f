"""Load saved captions from a table, instead of running a model."""

import csv
import io
import re
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
from pyarrow import fs as pafs

from vlcp_ray import schemas
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.files import check_access, read
from vlcp_ray.store.io import open_uri, retry
from vlcp_ray.store.tables import check_types

_FORMATS: Final = {".jsonl": "json", ".json": "json", ".csv": "csv"}
_EXPECTED: Final = {
    "json": "JSON lines",
    "csv": "CSV",
    "parquet": "parquet (JSON lines end in .jsonl, CSV in .csv)",
}
_FIXES: Final = {
    "json": "; write one JSON object a line",
    "csv": "; put captions with commas in double quotes",
    "parquet": "",
}
#: What Arrow says of a file, and a sentence with its fix where the one of the format does not help.
_CAUSES: Final = (
    (r"multiple columns named (?P<name>.+)", "two of its columns are named {name!r}; rename or remove one of them"),
    (r"Column\(/(?P<name>.+)\) was specified twice", "a row has {name!r} twice; rename or remove one of them"),
    (
        r"Column\(/(?P<name>.+)\) changed from (?P<types>\w+ to \w+)",
        "{name!r} changes from {types}; write it as text in each row",
    ),
    (r"duplicate field names", "two of its columns have the same name; rename or remove one of them"),
    (r"Empty CSV file", "it is empty; write image_id,caption in its first line, and then a row for each image"),
    (r"Expected 1 columns", "its first line has no comma; separate the columns with commas, or save it as JSON lines"),
)
_SEPARATORS: Final = {";": "semicolons", "\t": "tabs"}
_NOT_UTF8: Final = "its text is not UTF-8; save it as UTF-8"
_BINARY: Final = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_SHOWN: Final = 10  # columns of a table, in an error
_LARGEST_FIELD: Final = 2 * 2**20  # characters; Arrow reads no row of CSV with more bytes than two of its blocks


class LoadSavedCaptions:
    """Row-wise: add captions from a table at a URI: parquet, JSON lines or CSV."""

    def __init__(self, uri: str, keeps_missing: bool = False) -> None:
        """Read the table.

        Args:
            keeps_missing: whether images that are not in it get "" instead of being rejected.

        Raises:
            ConfigError: it cannot be read.
        """
        self.captions = CaptionTable(_read(uri), keeps_missing)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add `caption` (see `CaptionTable`)."""
        return self.captions(table)


def check_names(uri: str, images: Artifact) -> tuple[int, int]:
    """Compare the names of a table of captions with those of all training images, before any image is encoded.

    Args:
        images: IMAGES.

    Returns:
        The number of training images, and how many of them are in the table.

    Raises:
        ConfigError: the table cannot be read, no image is in it, names differ in their case, or a file name is that of
            two images.
    """
    rows = images.table("images", schemas.IMAGES, ["image_id", "split"])
    image_ids = rows.filter(pc.equal(rows["split"], "train"))["image_id"]
    captions = CaptionTable(_read(uri))
    found = int((captions.find(image_ids) >= 0).sum())
    if len(image_ids) and not found:
        first = f"whose first name is {captions.index[0]!r}" if len(captions.index) else "which has no rows"
        raise ConfigError(
            f"caption.source: none of the {len(image_ids):,} training images is in {uri}, {first}; theirs is "
            f"{image_ids[0].as_py()!r}: write names as the image set has them"
        )
    return len(image_ids), found


def open_captions(uri: str) -> pads.Dataset:
    """Open the table of captions at a URI, and check the columns of its first file.

    Raises:
        ConfigError: it does not exist, is neither parquet nor JSON lines nor CSV, lacks a column or has one that is no
            text, or the store refuses access.
    """
    try:
        filesystem, path = open_uri(uri, "caption.source")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    kind = _format(path)
    table = _open(uri, filesystem, path, kind)
    columns = _find_columns(table.schema)
    is_binary = any(table.schema.field(name).type == pa.binary() for name in columns)
    if kind == "csv" and is_binary:  # Arrow's type for text that is not UTF-8
        raise _refusal(uri, kind, _NOT_UTF8)
    _check_text(table.schema, columns)
    return table if kind == "parquet" else _open(uri, filesystem, path, kind, _as_text(table.schema, columns, kind))


def _open(uri: str, filesystem: pafs.FileSystem, path: str, kind: str, schema: pa.Schema | None = None) -> pads.Dataset:
    # A model's answer may have several lines.
    reader = pads.CsvFileFormat(pacsv.ParseOptions(newlines_in_values=True)) if kind == "csv" else kind
    try:
        table = pads.dataset(path, schema, filesystem=filesystem, format=reader)
        check_types(table.schema, None, "the table", "write captions as plain text")
    except (OSError, ValueError) as error:
        retry(lambda: check_access(filesystem, path), f"read caption.source {path}")
        if isinstance(error, FileNotFoundError):
            raise _refusal(uri, kind, "there is no such file") from error
        if kind != "parquet" and _is_utf16(filesystem, path):
            raise _refusal(uri, kind, _NOT_UTF8) from error
        if kind == "csv" and filesystem.get_file_info(path).type == pafs.FileType.File:
            _check_quotes(uri, filesystem, [path])
        raise _refusal(uri, kind, _explain(error, kind)) from error
    if kind != "parquet" and any(_is_utf16(filesystem, file) for file in table.files[:1]):
        raise _refusal(uri, kind, _NOT_UTF8)
    return table


def _as_text(schema: pa.Schema, columns: tuple[str, str], kind: str) -> pa.Schema:
    """Give columns the type of text that Arrow takes for numbers or times: "007" for 7, a date for midnight."""
    for name in columns:
        number = schema.get_field_index(name)
        if kind == "csv" or pa.types.is_timestamp(schema.types[number]):
            schema = schema.set(number, pa.field(name, pa.string()))
    return schema


def _read(uri: str) -> pa.Table:
    """Read the columns of names and captions.

    Raises:
        ConfigError: the table cannot be read.
    """
    table, kind = open_captions(uri), _format(uri.partition("?")[0])
    if kind == "csv":
        _check_quotes(uri, table.filesystem, table.files)
    try:
        # Only these columns: the table may be PAIRS of an earlier run, whose latents are large.
        captions: pa.Table = table.to_table(columns=list(_find_columns(table.schema)))
        captions.validate(full=True)  # of JSON and parquet Arrow takes any bytes as text
    except (OSError, ValueError, NotImplementedError) as error:
        is_encoding = isinstance(error, ValueError) and "utf8" in str(error).lower()
        reason = _NOT_UTF8 if is_encoding else _explain(error, kind)
        raise _refusal(uri, kind, reason) from error
    return captions


def _check_quotes(uri: str, filesystem: pafs.FileSystem, files: list[str]) -> None:
    """Refuse CSV with a quote that does not end its field: Arrow takes the rows up to the next quote for its text.

    Raises:
        ConfigError: it names the line in which the row begins.
    """
    previous = csv.field_size_limit(_LARGEST_FIELD)
    try:
        for path in files:
            if found := retry(partial(_find_open_quote, filesystem, path), f"read {path}"):
                line, reason = found
                more = f" of {path}" if len(files) > 1 else ""
                raise _refusal(uri, "csv", f"in the row that begins in line {line}{more}, {reason}")
    finally:
        csv.field_size_limit(previous)


def _find_open_quote(filesystem: pafs.FileSystem, path: str) -> tuple[int, str] | None:
    """Find the first row of CSV with a quote that does not end its field: its line, and what is wrong and the fix."""
    line = 1
    with filesystem.open_input_stream(path) as stream:
        # Text in another encoding has an error of its own.
        rows = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "replace", newline=""), strict=True)
        try:
            for _ in rows:
                line = rows.line_num + 1
        except csv.Error as error:
            if "field limit" in str(error):
                return line, "a column has more than 2 MiB; close its double quotes, or shorten the text"
            return line, (
                "double quotes are not closed where their column ends; close them there, and write those within a "
                'caption twice ("")'
            )
    return None


def _format(path: str) -> str:
    return next((kind for end, kind in _FORMATS.items() if path.lower().endswith(end)), "parquet")


def _is_utf16(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether a file has the first bytes of UTF-16: a mark of the order of bytes, or zeros."""
    if filesystem.get_file_info(path).type != pafs.FileType.File:  # a folder of files
        return False
    start = retry(lambda: read(filesystem, path, 4), f"read {path}")[:4]
    return start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start


def _explain(error: Exception, kind: str) -> str:
    """Return what is wrong in a file that Arrow does not read, and the fix."""
    reason = _reason(error)
    for pattern, sentence in _CAUSES:
        if found := re.search(pattern, reason):
            return sentence.format(**found.groupdict())
    return f"{reason}{_FIXES[kind]}" if isinstance(error, pa.ArrowInvalid) else reason


def _reason(error: Exception) -> str:
    """Return the last part of an error of Arrow, which says what is wrong in the file."""
    return str(error).splitlines()[0].rpartition("Invalid: ")[2]


def _refusal(uri: str, kind: str, reason: str) -> ConfigError:
    return ConfigError(f"caption.source: {uri} cannot be read as {_EXPECTED[kind]}: {reason}")


def _find_columns(schema: pa.Schema) -> tuple[str, str]:
    """Find the columns of names and captions; their names may have other case or spaces around them.

    Raises:
        ConfigError: one is missing, or there are two of it.
    """
    columns = {name.strip().lower(): name for name in schema.names} | {name: name for name in schema.names}
    if "image_id" in columns:
        wanted = ("image_id", "caption")
    else:
        wanted = ("file_name", "caption" if "caption" in columns and "text" not in columns else "text")
    if missing := [name for name in wanted if name not in columns]:
        for mark, mark_name in _SEPARATORS.items():
            if len(schema.names) == 1 and mark in schema.names[0]:
                raise ConfigError(
                    f"caption.source: the columns of the table are separated by {mark_name}; save it with commas, or "
                    "as JSON lines"
                )
        has = ", ".join(schema.names[:_SHOWN]) or "no columns"
        more = f" and {len(schema.names) - _SHOWN} more" if len(schema.names) > _SHOWN else ""
        raise ConfigError(
            f"caption.source: the table lacks {' and '.join(missing)}; it has {has}{more}, but needs image_id and "
            "caption, or file_name and text"
        )
    for name in wanted:
        twins = [other for other in schema.names if other.strip().lower() == name]
        if len(twins) > 1 and twins.count(name) != 1:
            raise ConfigError(
                f"caption.source: the table has the columns {' and '.join(map(repr, twins))}; rename or remove one of "
                "them"
            )
    return columns[wanted[0]], columns[wanted[1]]


def _check_text(schema: pa.Schema, columns: tuple[str, str]) -> None:
    """Refuse columns of names and captions that are no text.

    Raises:
        ConfigError: one is binary, a list or a record.
    """
    for name, fix in zip(columns, ("write one name a row", "write one caption for each image"), strict=True):
        kind = schema.field(name).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_nested(values) or any(is_type(values) for is_type in _BINARY):
            raise ConfigError(f"caption.source: column {name!r} of the table is {kind}, not text; {fix}, as text")


class CaptionTable:
    """Row-wise: add captions from a table in memory."""

    def __init__(self, captions: pa.Table, keeps_missing: bool = False) -> None:
        """Index a table of image_id and caption, or of file_name and text as the released code writes them.

        File names are compared without their extension, and with their last folder if the table has folders. Names may
        be written with `./` in front, and with Windows' backslashes.

        Args:
            keeps_missing: whether images that are not in the table get "" instead of being rejected.

        Raises:
            ConfigError: a column is missing or is no text, or an image_id or file name occurs twice.
        """
        self.keeps_missing = keeps_missing
        columns = _find_columns(captions.schema)
        _check_text(captions.schema, columns)
        # Cast first: Arrow does not filter every type of text, such as string_view.
        names, texts = (pc.cast(captions[column], pa.string()) for column in columns)
        has_name = names.is_valid()
        names = _plain_paths(names.filter(has_name).combine_chunks())
        self.captions = texts.filter(has_name).combine_chunks()
        self.n_folders: int | None = None  # of file names; None: the names are ids
        if columns[0].strip().lower() == "file_name":
            self.n_folders = _count_folders(names)
            names = _file_names(names, self.n_folders)
        counts = pc.value_counts(names)
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            raise ConfigError(
                f"caption.source: {len(repeated)} ids occur more than once, for example {repeated[0].as_py()!r}; "
                "keep one row of each"
            )
        # pandas hashes the ids once; Arrow would for every batch: at ImageNet's size nearly all of the time.
        self.index = pd.Index(names.to_numpy(zero_copy_only=False))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add `caption`; rejects images that are not in the table (`missing_caption`) or have no word in it
        (`empty_caption`), unless missing ones are kept.

        Raises:
            ConfigError: see `find`.
        """
        matches = self.find(table["image_id"])
        positions = pa.array(matches, mask=matches < 0)
        missing = pc.indices_nonzero(pc.is_null(positions)).to_pylist()
        captions = pc.fill_null(self.captions.take(positions), "")
        empty = pc.indices_nonzero(pc.equal(pc.utf8_trim_whitespace(captions), "")).to_pylist()
        errors = dict[int, tuple[str, str]]()
        if self.keeps_missing:
            captions = pc.if_else(pc.equal(pc.utf8_trim_whitespace(captions), ""), "", captions)
        else:
            errors |= dict.fromkeys(empty, ("empty_caption", "the table's caption has no word"))
            errors |= dict.fromkeys(missing, ("missing_caption", "the table of captions lacks this image_id"))
        rejected = schemas.reject(table, errors)
        kept = pc.if_else(pc.equal(rejected["reason"], ""), captions, "")
        return schemas.with_column(rejected, "caption", kept)

    def find(self, image_ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """Find the rows of images in the table: (n,), -1 for those that are not in it.

        Raises:
            ConfigError: an image's name differs from one of the table in its case only, or two images have the same
                file name.
        """
        names = _plain_paths(image_ids)
        if self.n_folders is not None:
            names = _file_names(names, self.n_folders)
        matches: npt.NDArray[np.int64] = self.index.get_indexer(names.to_numpy(zero_copy_only=False))
        self._check_case(names.filter(pa.array(matches < 0)))
        if self.n_folders is not None:
            self._check_unique(image_ids, matches)
        return matches

    @cached_property
    def _lower_case(self) -> tuple[Any, npt.NDArray[np.int64]]:
        """The different names in lower case, as an index, and the row of each: the first one of several."""
        lower = self.index.str.lower()
        rows = np.flatnonzero(~lower.duplicated())
        return lower[rows], rows

    def _check_case(self, missing: pa.ChunkedArray) -> None:
        """Refuse names that are not in the table, but would be in lower case."""
        if not len(missing) or not len(self.index):
            return
        lower, rows = self._lower_case
        found = lower.get_indexer(pc.utf8_lower(missing).to_numpy(zero_copy_only=False))
        if (found >= 0).any():
            first = int((found >= 0).argmax())
            name, other = missing[first].as_py(), self.index[rows[found[first]]]
            raise ConfigError(
                f"caption.source: the table has {other!r} and the image set {name!r}; write names in the same case"
            )

    def _check_unique(self, image_ids: pa.ChunkedArray, matches: npt.NDArray[np.int64]) -> None:
        """Check that no two images have the same row."""
        row, count = np.unique(matches[matches >= 0], return_counts=True)
        if (count > 1).any():
            repeated = row[count > 1][0]
            first, second = (image_ids[i].as_py() for i in np.flatnonzero(matches == repeated)[:2].tolist())
            raise ConfigError(
                f"caption.source: the file name {self.index[repeated]!r} matches {first} and {second}; "
                "write the table's file names with the folder of their class"
            )


def _plain_paths(paths: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Write paths with slashes instead of Windows' backslashes, and without `./` in front."""
    return pc.replace_substring_regex(pc.replace_substring(paths, "\\", "/"), r"^(\./)+", "")


def _count_folders(file_names: pa.Array) -> int:
    """Return how many folders are compared besides the file name: 1 if the table's names have folders, else 0."""
    return int(bool(pc.any(pc.match_substring(file_names, "/")).as_py()))


def _file_names(paths: pa.Array | pa.ChunkedArray, n_folders: int) -> pa.Array | pa.ChunkedArray:
    """Cut paths to file names and last folders, without extension and without the `_<wnid>` of the hub's ImageNet."""
    stems = pc.replace_substring_regex(paths, r"(_n\d{8})?\.\w+$", "")
    return pc.replace_substring_regex(stems, rf"^.*?((?:[^/]*/){{0,{n_folders}}}[^/]*)$", r"\1")
