"""Tests of the section of coverage and memorisation: shown pairs, and the rows of its table."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray.stages.report import NEIGHBOURS
from vlcp_ray.stages.report.coverage_section import MAX_PAIRS, coverage_rows, nearest_pairs


def neighbours(values: list[tuple[float, float]]) -> pa.Table:
    rows = [
        {"method": "vlcp", "ipc": 2, "seed": 0, "label": 0, "image_id": f"s{i:02}", "real_image_id": f"r{i:02}"}
        | {"distance": distance, "spread": spread}
        for i, (distance, spread) in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema=NEIGHBOURS)


def measures(method: str, ipc: int, seed: int, **values: Any) -> dict[str, Any]:
    known = {"coverage": 0.5, "diversity": 2.0, "redundancy": 0.1, "to_real": 1.25}
    return {"method": method, "ipc": ipc, "seed": seed} | known | values


def test_nearest_pairs_are_sorted_by_the_distance_in_units_of_their_class() -> None:
    pairs = nearest_pairs(neighbours([(0.3, 0.1), (0.2, 0.5), (0.0, float("nan")), (0.1, 0.1), (0.2, 0.0)]))
    assert pairs["image_id"].to_pylist() == ["s01", "s03", "s00", "s02", "s04"]  # without a unit at the end
    assert pairs["relative"].to_pylist() == [pytest.approx(0.4), 1.0, pytest.approx(3), None, None]


def test_nearest_pairs_are_limited_and_do_not_depend_on_the_order() -> None:
    table = neighbours([(value, 0.5) for value in np.random.default_rng(0).integers(0, 9, 60) / 8])
    shuffled = table.take(np.random.default_rng(1).permutation(60))
    pairs = nearest_pairs(table)
    assert len(pairs) == MAX_PAIRS
    assert pairs.to_pylist() == nearest_pairs(shuffled).to_pylist()
    assert max(pairs["distance"].to_pylist()) <= sorted(table["distance"].to_pylist())[MAX_PAIRS - 1]


def test_coverage_rows_are_means_over_seeds_by_ipc_and_method() -> None:
    rows = coverage_rows(
        [
            measures("random", 10, 0),
            measures("vlcp", 10, 0),
            measures("vlcp", 10, 1, coverage=0.7, redundancy=0.1),
            measures("zz", 1, 0, diversity=None),
        ]
    )
    assert [(row["ipc"], row["method"], row["sets"], row["is_ours"]) for row in rows] == [
        (1, "zz", 1, False),
        (10, "vlcp", 2, True),
        (10, "random", 1, False),
    ]
    assert rows[0]["text"] == {"coverage": "50.0", "diversity": "", "redundancy": "10.0", "to_real": "1.25"}
    assert rows[1]["text"]["coverage"] == "60.0 ± 14.1"
    assert rows[1]["text"]["to_real"] == "1.25 ± 0.00"
    assert coverage_rows([]) == []
