"""Tests of coverage and diversity on made-up images: copies, missing modes, collapsed sets, order and block size."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from tests.stages.report.small_report import png
from vlcp_ray.images import encode_png
from vlcp_ray.stages.report import COVERAGE, NEIGHBOURS, coverage
from vlcp_ray.stages.report.coverage import (
    NEAREST,
    SHRUNK,
    SIDE,
    ShrinkImages,
    compare,
    compare_class,
    find_neighbourhoods,
    squared_distances,
    summarise,
)

Floats = npt.NDArray[np.float64]
KEY = {"method": "vlcp", "ipc": 3, "seed": 0}


def points(count: int, centre: float, seed: int = 0) -> Floats:
    """Whole numbers around a centre, in 12 dimensions."""
    return np.random.default_rng(seed).integers(-4, 5, (count, 12)) + np.float64(centre)


def shrunk(name: str, greys: Sequence[int], label: int = 0) -> pa.Table:
    rows = [
        {"set": name, "image_id": f"{name}-{i:02}", "label": label, "pixels": bytes([grey]) * (SIDE * SIDE * 3)}
        for i, grey in enumerate(greys)
    ]
    return pa.Table.from_pylist(rows, schema=SHRUNK)


def test_coverage_of_identical_images_is_whole() -> None:
    real = find_neighbourhoods(points(40, 100))
    found = compare(real, real.pixels)
    assert found.covered.all()
    assert (found.to_real == 0).all()
    np.testing.assert_array_equal(real.pixels[found.nearest_real], real.pixels)


def test_coverage_is_less_where_a_mode_is_missing() -> None:
    real = find_neighbourhoods(np.concatenate([points(30, 50), points(30, 200, seed=1)]))
    both = compare(real, np.concatenate([points(15, 50, seed=2), points(15, 200, seed=3)]))
    one = compare(real, points(30, 50, seed=2))
    assert one.covered[:30].sum() > 0
    assert not one.covered[30:].any()
    assert both.covered.sum() > both.covered[:30].sum() > 0


def test_coverage_is_by_the_fifth_nearest_real_image() -> None:
    """Real images at 0, 10, ... 90 on a line: from 0 the fifth nearest is at 50, and from 40 it is at 10 or 70."""
    line = np.arange(0, 100, 10.0)[:, None]
    real = find_neighbourhoods(line)
    assert NEAREST == 5
    assert np.sqrt(real.radii).tolist() == [50, 40, 30, 30, 30, 30, 30, 30, 40, 50]
    assert real.spread == 10
    assert np.flatnonzero(compare(real, np.array([[-35.0]])).covered).tolist() == [0]
    assert compare(real, np.array([[45.0]])).covered.all()  # 45 from the first and the last
    assert np.flatnonzero(compare(real, np.array([[75.0]])).covered).tolist() == [5, 6, 7, 8, 9]
    assert np.flatnonzero(compare(real, np.array([[125.0]])).covered).tolist() == [9]


def test_distances_of_a_collapsed_set_are_small_and_redundant() -> None:
    real = find_neighbourhoods(points(50, 100))
    spread_out, collapsed = points(10, 100, seed=5), np.repeat(points(1, 120, seed=6), 10, axis=0)
    varied, same = compare(real, spread_out), compare(real, collapsed)
    assert varied.to_synthetic.mean() > 0
    assert (same.to_synthetic == 0).all()
    assert (same.to_synthetic < same.to_real).all()
    assert same.covered.sum() < varied.covered.sum()
    assert np.isnan(compare(real, collapsed[:1]).to_synthetic).all()


def test_results_depend_neither_on_order_nor_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = points(23, 100), points(9, 103, seed=1)
    order, made_order = np.random.default_rng(2).permutation(23), np.random.default_rng(3).permutation(9)
    first = compare(find_neighbourhoods(real), made)
    monkeypatch.setattr(coverage, "_BLOCK", 4)
    again = compare(find_neighbourhoods(real[order]), made[made_order])
    np.testing.assert_array_equal(again.covered, first.covered[order])
    np.testing.assert_array_equal(again.to_real, first.to_real[made_order])
    np.testing.assert_array_equal(again.to_synthetic, first.to_synthetic[made_order])
    np.testing.assert_array_equal(order[again.nearest_real], first.nearest_real[made_order])
    assert find_neighbourhoods(real[order]).spread == find_neighbourhoods(real).spread


def test_squared_distances_are_exact() -> None:
    values = np.random.default_rng(0).integers(0, 256, (7, SIDE * SIDE * 3)).astype(np.float64)
    expected = [[int(np.square(a - b).sum()) for b in values] for a in values]
    assert squared_distances(values, values).tolist() == expected


def test_a_single_real_image_is_covered_by_its_copy_only() -> None:
    real = find_neighbourhoods(points(1, 100))
    assert math.isnan(real.spread)
    assert compare(real, points(1, 100)).covered.tolist() == [True]
    assert compare(real, points(1, 101)).covered.tolist() == [False]


def test_shrink_images_keeps_ids_and_makes_them_small() -> None:
    table = pa.table({"image_id": ["a", "b"], "label": pa.array([3, 3], pa.int32()), "image": [png(7), png(9, 100)]})
    small = ShrinkImages("x")(table)
    assert small.schema.equals(SHRUNK)
    assert small.select(["set", "image_id", "label"]).to_pylist() == [
        {"set": "x", "image_id": name, "label": 3} for name in ("a", "b")
    ]
    assert [set(pixels) for pixels in small["pixels"].to_pylist()] == [{7}, {9}]
    assert ShrinkImages("")(table.slice(0, 0)).schema.equals(SHRUNK)


def test_compare_class_equals_hand_computation() -> None:
    """Grey images: their distance is the difference of the levels / 255."""
    rows = pa.concat_tables([shrunk("", [0, 51, 102]), shrunk("one", [0, 10, 204])])
    table, neighbours = compare_class(rows, {"one": KEY, "absent": KEY | {"seed": 1}})
    assert table.schema.equals(COVERAGE)
    assert neighbours.schema.equals(NEIGHBOURS)
    (row,) = table.to_pylist()
    assert {name: row[name] for name in ("method", "ipc", "seed", "label", "real", "synthetic")} == KEY | {
        "label": 0,
        "real": 3,
        "synthetic": 3,
    }
    assert (row["covered"], row["redundant"]) == (3, 0)  # the image of 10 is as near to that of 0 as to the real 0
    assert (row["spread"], row["to_real"]) == pytest.approx((0.2, (0 + 10 + 102) / 255 / 3))
    assert row["to_synthetic"] == pytest.approx((10 + 10 + 194) / 255 / 3)
    assert [(r["image_id"], r["real_image_id"]) for r in neighbours.to_pylist()] == [
        ("one-00", "-00"),
        ("one-01", "-00"),
        ("one-02", "-02"),
    ]
    assert neighbours["distance"].to_pylist() == pytest.approx([0, 10 / 255, 102 / 255])
    assert neighbours["spread"].to_pylist() == pytest.approx([0.2] * 3)


def test_compare_class_takes_rows_in_any_order() -> None:
    rows = pa.concat_tables([shrunk("", [0, 51, 60, 102]), shrunk("one", [3, 9, 204]), shrunk("two", [7])])
    sets = {"one": KEY, "two": KEY | {"method": "random", "ipc": 1}}
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))
    for first, second in zip(compare_class(rows, sets), compare_class(shuffled, sets), strict=True):
        assert first.equals(second) or first.to_pydict().__repr__() == second.to_pydict().__repr__()  # NaN


def test_summarise_is_over_classes_in_units_of_their_spread() -> None:
    rows = [
        {**KEY, "label": 0, "real": 4, "synthetic": 2, "covered": 4, "redundant": 1}
        | {"spread": 0.1, "to_real": 0.1, "to_synthetic": 0.3},
        {**KEY, "label": 1, "real": 12, "synthetic": 2, "covered": 0, "redundant": 0}
        | {"spread": 0.2, "to_real": 0.1, "to_synthetic": 0.2},
    ]
    (row,) = summarise(pa.Table.from_pylist(rows[::-1], schema=COVERAGE))
    assert row == KEY | {
        "coverage": 0.25,
        "redundancy": 0.25,
        "to_real": pytest.approx(0.75),
        "diversity": pytest.approx(2),
    }
    single = [row | {"to_synthetic": math.nan, "spread": 0.0} for row in rows]
    (row,) = summarise(pa.Table.from_pylist(single, schema=COVERAGE))
    assert (row["diversity"], row["to_real"], row["coverage"]) == (None, None, 0.25)
    assert summarise(COVERAGE.empty_table()) == []


def test_a_copy_of_a_photograph_has_distance_zero_and_a_changed_one_has_not() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 48, 40, 3)).astype(np.uint8)
    brighter = (pixels[0].astype(int) + 20).clip(0, 255).astype(np.uint8)
    files = {"": [*pixels], "one": [pixels[3], brighter]}
    tables = [
        ShrinkImages(name)(
            pa.table(
                {
                    "image_id": [f"{name}{i}" for i in range(len(images))],
                    "label": pa.array([0] * len(images), pa.int32()),
                    "image": [encode_png(image) for image in images],
                }
            )
        )
        for name, images in files.items()
    ]
    _, neighbours = compare_class(pa.concat_tables(tables), {"one": KEY})
    copy, changed = neighbours.to_pylist()
    assert (copy["real_image_id"], copy["distance"]) == ("3", 0)
    assert changed["real_image_id"] == "0"
    assert 0 < changed["distance"] < changed["spread"]
