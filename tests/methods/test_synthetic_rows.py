"""Tests of rows of SYNTHETIC made from real images."""

import numpy as np
import pyarrow as pa

from vlcp_ray.demo import digits
from vlcp_ray.images import decode
from vlcp_ray.methods.synthetic_rows import as_synthetic, from_prototypes
from vlcp_ray.models.stable_diffusion import Pictures
from vlcp_ray.schemas import SYNTHETIC, conform


def test_as_synthetic_keeps_the_pixels() -> None:
    rows = pa.Table.from_pylist([dict(row) for row in digits.rows("val")][:3])
    synthetic = as_synthetic(rows)
    assert synthetic.schema == SYNTHETIC
    for before, after in zip(rows["image"].to_pylist(), synthetic["image"].to_pylist(), strict=True):
        np.testing.assert_array_equal(np.asarray(decode(before)), np.asarray(decode(after)))
    assert synthetic["prototype_id"].to_pylist() == synthetic["text"].to_pylist() == ["", "", ""]
    assert synthetic["seed"].to_pylist() == [0, 0, 0]
    assert synthetic["image_id"].equals(rows["image_id"])


def test_from_prototypes_adds_columns_and_resizes() -> None:
    table = pa.table({"prototype_id": ["3-0", "3-1"], "label": pa.array([3, 3], pa.int32()), "class_name": ["a", "a"]})
    pixels = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (10, 200)])
    rows = conform(from_prototypes(table, "vlcp", Pictures(pixels, []), 8, ["x", "y"], [5, 6]), SYNTHETIC).to_pylist()
    assert [row["image_id"] for row in rows] == ["vlcp-3-0", "vlcp-3-1"]
    assert [(row["split"], row["text"], row["seed"]) for row in rows] == [("train", "x", 5), ("train", "y", 6)]
    images = [np.asarray(decode(row["image"])) for row in rows]
    assert [(image.shape, set(image.ravel().tolist())) for image in images] == [((8, 8, 3), {10}), ((8, 8, 3), {200})]


def test_from_prototypes_rejects_images_that_are_not_finite() -> None:
    table = pa.table({"prototype_id": ["3-0", "3-1"], "label": pa.array([3, 3], pa.int32()), "class_name": ["a", "a"]})
    rows = from_prototypes(table, "vlcp", Pictures(np.zeros((2, 4, 4, 3), np.uint8), [1]), 8, ["x", "y"], [5, 6])
    assert rows["reason"].to_pylist() == ["", "not_finite"]
    assert rows["source"].to_pylist() == ["3-0", "3-1"]  # by which a resumed run knows them
