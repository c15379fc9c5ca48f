"""Tests of the layout of the embedded digits."""

import pyarrow.compute as pc

from tests.image_sets import open_set, read_all
from vlcp_ray.sources.reader import RAW


def test_digits_read_has_exact_counts_of_both_splits() -> None:
    source = open_set("digits")
    table = read_all(source)
    assert table.schema == RAW
    counts = {c["values"]: c["counts"] for c in pc.value_counts(table["split"]).to_pylist()}
    assert counts == {"train": 1297, "val": 500}
    assert set(table["class_key"].to_pylist()) == set(source.classes.keys)
    assert len(set(table["image_id"].to_pylist())) == len(set(table["source"].to_pylist())) == 1797


def test_digits_read_skips_done_rows() -> None:
    done = read_all(open_set("digits"))["source"].to_pylist()[:1000]
    assert len(read_all(open_set("digits"), done)) == 797
