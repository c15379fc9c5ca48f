"""Tests of measurements in turns and of the rows of the table."""

import json

import pytest

from tests.benchmarks.turns import Row, in_turns


def test_row_ratio_is_the_median_ratio_of_the_pairs() -> None:
    row = Row("x", "images/s", 3, [(1.0, 4.0), (10.0, 20.0), (2.0, 6.0)])
    assert (row.reference, row.ours, row.ratio) == (2.0, 6.0, 3.0)
    assert "3.00  2.00 to 4.00" in str(row)


def test_row_facts_have_every_repetition() -> None:
    facts = json.loads(json.dumps(Row("x", "images/s", None, [(1.0, 4.0), (2.0, 6.0)]).facts()))
    assert facts["repetitions"] == [{"reference": 1.0, "ours": 4.0}, {"reference": 2.0, "ours": 6.0}]
    assert facts["target"] is None


def test_in_turns_alternates_after_one_unmeasured_call_each() -> None:
    calls: list[str] = []

    def work(name: str, amount: float) -> float:
        calls.append(name)
        return amount

    pairs = in_turns(lambda: work("reference", 1), lambda: work("ours", 50), pairs=2)
    assert calls == ["reference", "ours"] * 3
    assert len(pairs) == 2
    assert all(rate > 0 for pair in pairs for rate in pair)


def test_row_without_target_leaves_its_column_empty() -> None:
    assert str(Row("x", "images/s", None, [(1.0, 2.0)], "note")).split() == ["x", "2", "1", "images/s", "2.00", "note"]
    assert Row("x", "images/s", 3, [(1.0, 2.0)]).ratio == pytest.approx(2)
