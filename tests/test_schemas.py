"""Tests of the tables: conform, reject and tensor columns."""

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray import schemas
from vlcp_ray.schemas import REASONS, conform, reject, tensor_array, tensors, with_column
from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.stages.pair import pairs_schema
from vlcp_ray.stages.prototype import MEMBERS, prototypes_schema


def members(**columns: object) -> pa.Table:
    rows = {"image_id": ["a", "b"], "label": [0, 1], "cluster": [0, -1], "distance": [0.5, 2.0]}
    return pa.table({**rows, **columns})


def test_conform_casts_orders_and_drops_columns() -> None:
    table = members(extra=["x", "y"]).select(["extra", "distance", "cluster", "label", "image_id"])
    table = conform(table, MEMBERS)
    assert table.schema == MEMBERS
    assert table["distance"].to_pylist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (members().drop_columns("cluster"), "column 'cluster' is missing: its cluster within the class"),
        (members(label=[0, None]), "column 'label' has 1 nulls"),
        (members(label=["zero", "one"]), "column 'label' is string, not int32"),
        (members(cluster=[2**40, 0]), "column 'cluster' is int64, not int32"),
    ],
)
def test_conform_of_a_bad_column_names_it(table: pa.Table, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conform(table, MEMBERS)


def test_every_column_has_a_meaning() -> None:
    fixed = [schemas.IMAGES, MEMBERS, schemas.SYNTHETIC, SCORES, schemas.REJECTED]
    for schema in [*fixed, pairs_schema((4, 4, 4), (8, 4, 4)), prototypes_schema((4, 4, 4))]:
        assert all(field.metadata[b"meaning"] and not field.nullable for field in schema)


def test_synthetic_begins_with_the_columns_of_images() -> None:
    shared = [name for name in schemas.IMAGES.names if name != "source"]
    assert schemas.SYNTHETIC.names[: len(shared)] == shared


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tensor_columns_survive_slicing_and_parquet(tmp_path: object, dtype: type) -> None:
    values = np.arange(6 * 4 * 2 * 3).reshape(6, 4, 2, 3).astype(dtype)
    table = pa.table({"latent": tensor_array(values)})
    assert table["latent"].type == pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), (4, 2, 3))
    np.testing.assert_array_equal(tensors(table.slice(2, 3)["latent"]), values[2:5])
    np.testing.assert_array_equal(tensors(table.take([5, 0])["latent"]), values[[5, 0]])


def test_reject_keeps_the_first_reason() -> None:
    table = pa.table({"image_id": ["a", "b", "c"]})
    once = reject(table, {1: ("undecodable", "no image")})
    twice = reject(once, {1: ("empty_caption", "late"), 2: ("empty_caption", "nothing")})
    assert twice["reason"].to_pylist() == ["", "undecodable", "empty_caption"]
    assert twice["detail"].to_pylist() == ["", "no image", "nothing"]


def test_reject_with_unknown_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="reason 'bad' is none of"):
        reject(pa.table({"image_id": ["a"]}), {0: ("bad", "")})
    assert all(meaning for meaning in REASONS.values())


def test_with_column_of_existing_name_replaces_it() -> None:
    table = with_column(pa.table({"a": [1], "b": [2]}), "a", pa.array([3]))
    assert table.to_pydict() == {"a": [3], "b": [2]}
