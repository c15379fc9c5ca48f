"""Knows the tables that pass between stages: their columns, their meaning, and how a table is made to fit."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

#: The file of the teacher's weights, the one thing that passes between stages and is no table and no model folder.
TEACHER: Final = "teacher.safetensors"


def _field(name: str, dtype: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, dtype, nullable=False, metadata={"meaning": meaning})


def _identity(what: str = "image") -> list[pa.Field]:
    return [
        _field("image_id", pa.string(), f"stable id of the {what}, unique in the table"),
        _field("label", pa.int32(), "index of class_name in the job's class list"),
        _field("class_name", pa.string(), "the class in words, as prompts use it"),
    ]


def _image_columns(encoding: str) -> list[pa.Field]:
    return [
        *_identity(),
        _field("split", pa.string(), "train or val"),
        _field("image", pa.binary(), f"the file's bytes, {encoding}"),
    ]


def pairs_schema(latent: tuple[int, int, int], moments: tuple[int, int, int], views: int = 2) -> pa.Schema:
    """PAIRS for latents of shape (c, h, w) and posterior moments of shape (2c, h', w') of so many views."""
    return pa.schema(
        [
            *_identity(),
            _field("caption", pa.string(), "what the captioner says of the image"),
            _field("latent", pa.fixed_shape_tensor(pa.float16(), latent), "VAE posterior sample x scaling factor"),
            _field(
                "train_moments",
                pa.fixed_shape_tensor(pa.float16(), (views, *moments)),
                "VAE posterior mean and logvar of the training view: plain, and flipped if finetune.random_flip",
            ),
        ]
    )


def prototypes_schema(latent: tuple[int, int, int]) -> pa.Schema:
    """PROTOTYPES for centroids of shape (c, h, w)."""
    return pa.schema(
        [
            _field("prototype_id", pa.string(), "label and cluster, unique in the table"),
            _field("label", pa.int32(), "index of class_name in the job's class list"),
            _field("class_name", pa.string(), "the class in words, as prompts use it"),
            _field("cluster", pa.int32(), "cluster within the class, 0 .. ipc - 1"),
            _field("size", pa.int32(), "number of inliers in the cluster"),
            _field("latent", pa.fixed_shape_tensor(pa.float32(), latent), "the centroid: the image prototype"),
            _field("text", pa.string(), "the chosen description: the text prototype"),
            _field("text_image_id", pa.string(), "the image whose description it is"),
            _field("words", pa.list_(pa.string()), "the cluster's representative words, most frequent first"),
        ]
    )


IMAGES: Final = pa.schema(
    [*_image_columns("as found"), _field("source", pa.string(), "where the row came from: file, shard or data set")]
)
MEMBERS: Final = pa.schema(
    [
        _field("image_id", pa.string(), "the training image"),
        _field("label", pa.int32(), "its class"),
        _field("cluster", pa.int32(), "its cluster within the class, -1 for an outlier"),
        _field("distance", pa.float32(), "distance to the centroid in latent space; to the nearest one for an outlier"),
    ]
)
SYNTHETIC: Final = pa.schema(
    [
        *_image_columns("PNG"),
        _field("prototype_id", pa.string(), "the prototype it was drawn from; empty for selected real images"),
        _field("text", pa.string(), "the text it was drawn under; empty where no text was used"),
        _field("seed", pa.int64(), "the seed of its noise"),
    ]
)
SCORES: Final = pa.schema(
    [
        _field("trial_id", pa.string(), "method, protocol, ipc, seed, network and repeat in one word"),
        _field("protocol", pa.string(), "minimax or rded"),
        _field("network", pa.string(), "the classifier that was trained"),
        _field("method", pa.string(), "how the training set was made: vlcp, random, centroid, full"),
        _field("ipc", pa.int32(), "images per class; 0 for the full train split"),
        _field("seed", pa.int32(), "the seed of the distilled set"),
        _field("repeat", pa.int32(), "which training of the classifier on that set"),
        _field("top1_last", pa.float32(), "accuracy on val after the last epoch, a fraction of 1"),
        _field("top1_best", pa.float32(), "best accuracy on val over all checks, a fraction of 1"),
        _field("top5_last", pa.float32(), "top-5 accuracy on val after the last epoch, a fraction of 1"),
        _field("epochs", pa.int32(), "training epochs"),
        _field("seconds", pa.float32(), "wall-clock seconds of the trial"),
        _field("curve", pa.list_(pa.float32()), "accuracy on val at every check, in order, the last one top1_last"),
        _field(
            "per_class",
            pa.list_(pa.float32()),
            "accuracy after the last epoch on each label's images in val, 0 where it has none",
        ),
        _field(
            "confusion",
            pa.list_(pa.int32()),
            "val's images by label and, within it, by predicted label; empty for more than 100 classes",
        ),
    ]
)
REJECTED: Final = pa.schema(
    [
        _field("image_id", pa.string(), "the row that was left out"),
        _field("stage", pa.string(), "the stage that left it out"),
        _field("reason", pa.string(), "one word of a fixed vocabulary"),
        _field("detail", pa.string(), "the error in full"),
        _field("source", pa.string(), "where the row came from"),
    ]
)

#: Every reason that a row may be rejected for, with its one-line meaning.
REASONS: Final[Mapping[str, str]] = {
    "undecodable": "the bytes are not an image that can be decoded",
    "too_large": "the image has more pixels or bytes than the limit",
    "empty": "the file has no bytes",
    "unreadable": "the file or tar member could not be read",
    "no_label": "the image set does not say which class it is",
    "unknown_label": "its class is not in the class list",
    "duplicate": "another row has the same id; the one with the first source stays",
    "empty_caption": "the captioner said nothing about the image",
    "missing_caption": "the table of descriptions has no row for the image",
}

#: What a row carries between row-wise stages: why it was rejected, empty while it is good.
FAULT_COLUMNS: Final = ("reason", "detail")


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Select, order and cast the columns of a table to a schema; extra columns are dropped.

    Raises:
        ValueError: a column is missing, has nulls or cannot be cast; the message names it.
    """
    arrays = []
    for field in schema:
        if field.name not in table.column_names:
            raise ValueError(f"column {field.name!r} is missing: {field.metadata[b'meaning'].decode()}")
        column = table.column(field.name)
        if column.null_count:
            raise ValueError(f"column {field.name!r} has {column.null_count} nulls, none are allowed")
        try:
            arrays.append(column if column.type == field.type else pc.cast(column, field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"column {field.name!r} is {column.type}, not {field.type}: {error}") from error
    return pa.Table.from_arrays(arrays, schema=schema)


def tensors(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """The values of a fixed-shape tensor column as one (n, *shape) array, without a Python object a row."""
    array = column.combine_chunks()
    values: npt.NDArray[Any] = array.to_numpy_ndarray()
    return values


def tensor_array(values: npt.NDArray[Any]) -> pa.FixedShapeTensorArray:
    """An (n, *shape) array as a fixed-shape tensor column."""
    shape = values.shape[1:]
    dtype = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), shape)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.ExtensionArray.from_storage(dtype, pa.FixedSizeListArray.from_arrays(flat, math.prod(shape)))


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with a column added, or replaced where the name is taken."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def reasons(table: pa.Table) -> list[str]:
    """Why each row was rejected by an earlier stage, empty for good rows."""
    return table["reason"].to_pylist() if "reason" in table.column_names else [""] * len(table)


def reject(table: pa.Table, faults: Mapping[int, tuple[str, str]]) -> pa.Table:
    """Mark rows as rejected: row number -> (reason, detail).

    A row-wise stage returns every row that it was given. The columns `reason` and `detail` are empty for good rows;
    rows that an earlier stage has marked keep its word.
    """
    columns = [table[name].to_pylist() if name in table.column_names else [""] * len(table) for name in FAULT_COLUMNS]
    for row, fault in faults.items():
        if fault[0] not in REASONS:
            raise ValueError(f"reason {fault[0]!r} is none of {', '.join(REASONS)}")
        if not columns[0][row]:
            columns[0][row], columns[1][row] = fault
    for name, column in zip(FAULT_COLUMNS, columns, strict=True):
        table = with_column(table, name, pa.array(column, pa.string()))
    return table
