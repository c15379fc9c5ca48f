"""Tests of the cost section: sums over the artifacts of a stage, and the format of durations and bytes."""

import pytest

from vlcp_ray.stages.report.contents import StageRow
from vlcp_ray.stages.report.cost_section import costs, format_bytes, format_duration


def row(stage: str, seconds: float | None, done: int = 10, memory: float | None = None) -> StageRow:
    return StageRow(f"{stage} a", stage, "f", 1, 1, 0, seconds, "", "2 x 1 CPU", done, "images", memory)


def test_costs_sum_artifacts_in_the_order_of_stages() -> None:
    table = costs([row("evaluate", 4.0), row("generate", 1.0, memory=512.0), row("generate", 3.0, memory=100.0)], {})
    assert [line["name"] for line in table] == ["generate", "evaluate"]
    assert (table[0]["seconds"], table[0]["artifacts"], table[0]["rate"]) == (4.0, 2, 5.0)
    assert table[0]["devices"] == "2 x 1 CPU"
    assert (table[0]["peak_memory"], table[1]["peak_memory"]) == (512.0, None)
    assert table[0]["share"] == 1.0


def test_costs_without_estimate_or_seconds_are_none() -> None:
    table = costs([row("ingest", 2.0), row("pair", None)], {"ingest": 3.0})
    assert [line["estimate"] for line in table] == [3.0, None]
    assert table[1]["rate"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "reused"), (0.04, "0.0 s"), (61.0, "1 min 01 s"), (59.99, "60.0 s"), (3 * 3600 + 299.0, "3 h 04 min")],
)
def test_format_duration_examples(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.5 KiB"),
        (200 * 1024, "200 KiB"),
        (1.4 * 2**30, "1.4 GiB"),
        (3 * 2**40, "3.0 TiB"),
    ],
)
def test_format_bytes_examples(n_bytes: float, text: str) -> None:
    assert format_bytes(n_bytes) == text


def test_costs_shares_are_of_the_longest_stage() -> None:
    table = costs([row("ingest", 2.0), row("pair", 8.0), row("generate", None, done=0)], {})
    assert [line["share"] for line in table] == [0.25, 1.0, 0.0]
    assert [line["done"] for line in table] == [10, 10, 0]
    assert [line["rate"] for line in table] == [5.0, 1.25, None]
    assert [line["share"] for line in costs([row("ingest", None)], {})] == [0.0]
    assert costs([], {}) == []


def test_costs_of_a_stage_without_counted_units_have_no_rate() -> None:
    (line,) = costs([row("ingest", 2.0, done=0)], {})
    assert (line["done"], line["unit"], line["rate"]) == (0, "images", None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59.9, "59.9 s"),
        (60.0, "1 min 00 s"),
        (3599.0, "59 min 59 s"),
        (3600.0, "1 h 00 min"),
        (3.6e6, "1,000 h 00 min"),
    ],
)
def test_format_duration_changes_its_unit_at_sixty(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (1000, "1.0 KiB"),
        (99.9 * 1024, "99.9 KiB"),
        (100 * 1024, "100 KiB"),
        (1000 * 1024, "1.0 MiB"),
        (1000 * 2**40, "1,000.0 TiB"),
    ],
)
def test_format_bytes_has_a_decimal_below_a_hundred(n_bytes: float, text: str) -> None:
    assert format_bytes(n_bytes) == text
