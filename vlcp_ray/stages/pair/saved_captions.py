"""Load saved captions from a table, instead of running a model."""

from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from vlcp_ray import schemas
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.files import check_access
from vlcp_ray.store.io import open_uri, retry
from vlcp_ray.store.tables import check_types

_FORMATS: Final = {".jsonl": "json", ".json": "json", ".csv": "csv"}


class LoadSavedCaptions:
    """Row-wise: add captions from a table at a URI: parquet, JSON lines or CSV."""

    def __init__(self, uri: str, keeps_missing: bool = False) -> None:
        """Read the table.

        Args:
            keeps_missing: whether images that are not in it get "" instead of being rejected.

        Raises:
            ConfigError: it cannot be read.
        """
        table = open_captions(uri)
        # Only these columns: the table may be PAIRS of an earlier run, whose latents are large.
        columns = [name for name in ("image_id", "caption", "file_name", "text") if name in table.schema.names]
        try:
            captions = table.to_table(columns=columns)
        except (OSError, ValueError, NotImplementedError) as error:
            raise ConfigError(f"caption.source: {uri} cannot be read: {str(error).splitlines()[0]}") from error
        self.captions = CaptionTable(captions, keeps_missing)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add `caption` (see `CaptionTable`)."""
        return self.captions(table)


def open_captions(uri: str) -> pads.Dataset:
    """Open the table of captions at a URI, and read the schema of its first file.

    Raises:
        ConfigError: it does not exist, is neither parquet nor JSON lines nor CSV, or the store refuses access.
    """
    try:
        filesystem, path = open_uri(uri, "caption.source")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    file_format = next((kind for end, kind in _FORMATS.items() if path.endswith(end)), "parquet")
    try:
        table = pads.dataset(path, filesystem=filesystem, format=file_format)
        check_types(table.schema, None, "the table", "write captions as plain text")
        return table
    except (OSError, ValueError) as error:
        retry(lambda: check_access(filesystem, path), f"read caption.source {path}")
        usual = "parquet (JSON lines end in .jsonl, CSV in .csv)"
        expected = {"json": "JSON lines", "csv": "CSV"}.get(file_format, usual)
        raise ConfigError(
            f"caption.source: {uri} cannot be read as {expected}: {str(error).splitlines()[0]}"
        ) from error


class CaptionTable:
    """Row-wise: add captions from a table in memory."""

    def __init__(self, captions: pa.Table, keeps_missing: bool = False) -> None:
        """Index a table of image_id and caption, or of file_name and text as the released code writes them.

        File names are compared without their extension, and with their last folder if the table has folders.

        Args:
            keeps_missing: whether images that are not in the table get "" instead of being rejected.

        Raises:
            ValueError: a column is missing or is no text, or an image_id or file name occurs twice.
        """
        self.keeps_missing, self.is_case_checked = keeps_missing, False
        names = ("image_id", "caption") if "image_id" in captions.column_names else ("file_name", "text")
        if missing := [name for name in names if name not in captions.column_names]:
            raise ValueError(
                f"caption.source: the table lacks {' and '.join(missing)}; it has {', '.join(captions.column_names)}, "
                "but needs image_id and caption, or file_name and text"
            )
        for name in names:
            kind = captions[name].type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind):
                raise ValueError(f"caption.source: column {name!r} of the table is {kind}, not text")
        image_ids = pc.cast(captions[names[0]], pa.string()).combine_chunks()
        self.captions = pc.cast(captions[names[1]], pa.string()).combine_chunks()
        self.n_folders = _count_folders(image_ids) if names[0] == "file_name" else None
        self.image_of: dict[str, str] = {}  # file name -> image_id
        if self.n_folders is not None:
            image_ids = _file_names(image_ids, self.n_folders)
        counts = pc.value_counts(image_ids)
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            raise ValueError(
                f"caption.source: {len(repeated)} ids occur more than once, for example {repeated[0].as_py()!r}; "
                "keep one row of each"
            )
        # pandas hashes the ids once; Arrow would for every batch: at ImageNet's size nearly all of the time.
        self.index = pd.Index(image_ids.to_numpy(zero_copy_only=False))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add `caption`; rejects images that are not in the table (`missing_caption`) or have no word in it
        (`empty_caption`), unless missing ones are kept.

        Raises:
            ValueError: two images have the same file name, or all names differ from the table's in their case only.
        """
        image_ids = table["image_id"]
        if self.n_folders is not None:
            image_ids = _file_names(image_ids, self.n_folders)
        matches = self.index.get_indexer(image_ids.to_numpy(zero_copy_only=False))  # -1: not in the table
        positions = pa.array(matches, mask=matches < 0)
        if not self.is_case_checked and len(matches) and (matches < 0).all():
            self._check_case(image_ids)
        if self.n_folders is not None:
            in_table = positions.is_valid()
            self._check_unique(image_ids.filter(in_table), table["image_id"].filter(in_table))
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

    def _check_case(self, image_ids: pa.ChunkedArray) -> None:
        """Refuse a table none of whose names are those of the images, but would be in lower case."""
        self.is_case_checked = True  # once: with `keeps_missing` many batches may have none
        lower = {name.lower(): name for name in self.index}
        for name in image_ids.to_pylist():
            if other := lower.get(name.lower()):
                raise ValueError(
                    f"caption.source: the table has {other!r} and the image set {name!r}; write names in the same case"
                )

    def _check_unique(self, file_names: pa.ChunkedArray, image_ids: pa.ChunkedArray) -> None:
        """Check that each file name is that of one image, in this batch and all earlier ones."""
        for name, image_id in zip(file_names.to_pylist(), image_ids.to_pylist(), strict=True):
            if self.image_of.setdefault(name, image_id) != image_id:
                raise ValueError(
                    f"caption.source: the file name {name!r} matches {self.image_of[name]} and {image_id}; "
                    "write the table's file names with the folder of their class"
                )


def _count_folders(file_names: pa.Array) -> int:
    """Return how many folders are compared besides the file name: 1 if the table's names have folders, else 0."""
    return int(bool(pc.any(pc.match_substring(file_names, "/")).as_py()))


def _file_names(paths: pa.Array | pa.ChunkedArray, n_folders: int) -> pa.Array | pa.ChunkedArray:
    """Cut paths to file names and last folders, without extension and without the `_<wnid>` of the hub's ImageNet."""
    stems = pc.replace_substring_regex(paths, r"(_n\d{8})?\.\w+$", "")
    return pc.replace_substring_regex(stems, rf"^.*?((?:[^/]*/){{0,{n_folders}}}[^/]*)$", r"\1")
