"""The tables that stages share: columns with their meaning, and functions that make a table fit its schema."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def column(name: str, dtype: pa.DataType, meaning: str) -> pa.Field:
    """Return a column without nulls, with its meaning in its metadata."""
    return pa.field(name, dtype, nullable=False, metadata={"meaning": meaning})


def identity_columns(what: str = "image") -> list[pa.Field]:
    """List the columns that identify a row and its class."""
    return [
        column("image_id", pa.string(), f"stable id of the {what}, unique in the table"),
        column("label", pa.int32(), "index of class_name in the job's class list"),
        column("class_name", pa.string(), "the class in words, as prompts use it"),
    ]


def _image_columns(encoding: str) -> list[pa.Field]:
    return [
        *identity_columns(),
        column("split", pa.string(), "train or val"),
        column("image", pa.binary(), f"the file's bytes, {encoding}"),
    ]


IMAGES: Final = pa.schema(
    [*_image_columns("as found"), column("source", pa.string(), "where the row came from: file, shard or data set")]
)
SYNTHETIC: Final = pa.schema(
    [
        *_image_columns("PNG"),
        column("prototype_id", pa.string(), "the prototype it was generated from; empty where there is none"),
        column("text", pa.string(), "the text that guided it; empty where no text was used"),
        column("seed", pa.int64(), "seed of its noise (rded, sre2l, idc-1, idc: of its set); 0 without noise"),
    ]
)
REJECTED: Final = pa.schema(
    [
        column("image_id", pa.string(), "id of the rejected image"),
        column("stage", pa.string(), "the stage that rejected it"),
        column("reason", pa.string(), "one of the reasons below"),
        column("detail", pa.string(), "the error in full"),
        column("source", pa.string(), "where the row came from"),
    ]
)

#: Every reason that a row may be rejected for, with its one-line meaning.
REASONS: Final[Mapping[str, str]] = {
    "undecodable": "the bytes are not an image that can be decoded",
    "too_large": "the image has more pixels or bytes than the limit",
    "too_slow": "decoding the image takes longer than the limit",
    "empty": "the file has no bytes",
    "unreadable": "the file or tar member could not be read",
    "no_label": "the image set names no class for it",
    "unknown_label": "its class is not in the class list",
    "duplicate": "another row has the same id; the one with the first source is kept",
    "empty_caption": "the caption has no word",
    "too_many_tokens": "image and prompt leave no token of caption.max_model_len for the caption",
    "not_finite": "a model makes numbers of it that are not finite, also in float32",
    "missing_caption": "the table of captions has no row for the image",
}

#: The columns in which a row carries why it was rejected, empty for good rows.
REASON_COLUMNS: Final = ("reason", "detail")


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Select, order and cast the columns of a table to a schema; extra columns are dropped.

    Raises:
        ValueError: a column is missing, has nulls or cannot be cast; the message names it.
    """
    arrays = []
    for field in schema:
        if field.name not in table.column_names:
            raise ValueError(f"column {field.name!r} is missing: {field.metadata[b'meaning'].decode()}")
        values = table.column(field.name)
        if values.null_count:
            raise ValueError(f"column {field.name!r} has {values.null_count} nulls, none are allowed")
        try:
            arrays.append(values if values.type == field.type else pc.cast(values, field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"column {field.name!r} is {values.type}, not {field.type}: {error}") from error
    return pa.Table.from_arrays(arrays, schema=schema)


def tensors(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Convert a fixed-shape tensor column to one (n, *shape) array, without a Python object for each row."""
    array = column.combine_chunks()
    values: npt.NDArray[Any] = array.to_numpy_ndarray()
    return values


def tensor_array(values: npt.NDArray[Any]) -> pa.FixedShapeTensorArray:
    """Convert an (n, *shape) array to a fixed-shape tensor column."""
    shape = values.shape[1:]
    dtype = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), shape)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.ExtensionArray.from_storage(dtype, pa.FixedSizeListArray.from_arrays(flat, math.prod(shape)))


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Add a column, or replace the one of that name."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def reasons(table: pa.Table) -> list[str]:
    """List the rejection reason of each row, empty for good rows."""
    return table["reason"].to_pylist() if "reason" in table.column_names else [""] * len(table)


def reject(table: pa.Table, errors: Mapping[int, tuple[str, str]]) -> pa.Table:
    """Mark rows as rejected: row number -> (reason, detail).

    A row-wise stage returns every row that it was given. The columns `reason` and `detail` are empty for good rows;
    rows that are rejected already keep their first reason.
    """
    columns = [table[name].to_pylist() if name in table.column_names else [""] * len(table) for name in REASON_COLUMNS]
    for row, error in errors.items():
        if error[0] not in REASONS:
            raise ValueError(f"reason {error[0]!r} is none of {', '.join(REASONS)}")
        if not columns[0][row]:
            columns[0][row], columns[1][row] = error
    for name, column in zip(REASON_COLUMNS, columns, strict=True):
        table = with_column(table, name, pa.array(column, pa.string()))
    return table
