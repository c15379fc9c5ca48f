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
