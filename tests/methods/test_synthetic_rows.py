"""Tests of rows of SYNTHETIC made from real images."""

import numpy as np
import pyarrow as pa

from vlcp_ray.demo import digits
from vlcp_ray.images import decode
from vlcp_ray.methods.synthetic_rows import as_synthetic
from vlcp_ray.schemas import SYNTHETIC


def test_as_synthetic_keeps_the_pixels() -> None:
    rows = pa.Table.from_pylist([dict(row) for row in digits.rows("val")][:3])
    synthetic = as_synthetic(rows)
    assert synthetic.schema == SYNTHETIC
    for before, after in zip(rows["image"].to_pylist(), synthetic["image"].to_pylist(), strict=True):
        np.testing.assert_array_equal(np.asarray(decode(before)), np.asarray(decode(after)))
