"""Tests of the summary of scores: means, differences and DD-Ranking against hand computation; table, JSON, headline."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.stages.report.scores import (
    hard_label_recovery,
    headline,
    improvement_over_random,
    label_robust_score,
    score_summary,
    score_table,
    scores_json,
)


def trials(method: str, ipc: int, values: Sequence[float], network: str = "ConvNet-3") -> list[dict[str, Any]]:
    return [
        {"trial_id": f"{method}-{ipc}-{network}-{i}", "protocol": "minimax", "network": network, "method": method}
        | {"ipc": ipc, "seed": 0, "repeat": i, "top1_last": value, "top1_best": value, "top5_last": 1.0}
        | {"epochs": 3, "seconds": 1.5, "curve": [0.1, value], "per_class": [value, value], "confusion": [2, 0, 1, 1]}
        for i, value in enumerate(values)
    ]


def scores(*groups: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([row for group in groups for row in group], schema=SCORES)


SCORED = scores(trials("random", 2, (0.5, 0.6)), trials("full", 0, (0.98,)), trials("vlcp", 2, (0.8, 0.84)))


def test_score_summary_equals_hand_computation() -> None:
    vlcp, random, full = score_summary(SCORED)
    assert [row["method"] for row in (vlcp, random, full)] == ["vlcp", "random", "full"]
    assert vlcp["n"] == 2
    assert vlcp["top1_last_mean"] == pytest.approx(0.82)
    assert vlcp["top1_last_std"] == pytest.approx(0.02 * math.sqrt(2))
    assert vlcp["top5_last_std"] == 0.0
    assert random["difference"] == pytest.approx(27.0, abs=1e-4)
    assert random["difference_std"] == pytest.approx(math.sqrt(8 + 50), abs=1e-4)
    assert random["significant"] is True
    assert (vlcp["difference"], vlcp["significant"], full["difference"]) == (None, None, None)
    assert full["top1_last_std"] is None


def test_score_summary_difference_below_two_stds_is_not_significant() -> None:
    wide = score_summary(scores(trials("vlcp", 2, (0.7, 0.9)), trials("random", 2, (0.5, 0.6))))
    assert wide[1]["significant"] is False
    worse = score_summary(scores(trials("vlcp", 2, (0.5, 0.5)), trials("random", 2, (0.6, 0.6))))
    assert worse[1]["significant"] is True
    assert worse[1]["difference"] == pytest.approx(-10, abs=1e-4)


def test_score_summary_of_one_trial_has_no_std_and_no_significance() -> None:
    table = scores(trials("vlcp", 1, (0.8,)), trials("random", 1, (0.5,)))
    row = score_summary(table)[1]
    assert (row["top1_last_std"], row["difference_std"], row["significant"]) == (None, None, None)
    assert "±" not in score_table(table).splitlines()[2]


def test_score_summary_compares_within_network_and_ipc() -> None:
    table = scores(
        *(trials(m, ipc, (v,)) for m, ipc, v in (("vlcp", 10, 0.9), ("random", 10, 0.8), ("vlcp", 1, 0.5))),
        trials("random", 1, (0.6,)),
        *(trials(m, ipc, (v,), "ConvNet-4") for m, ipc, v in (("vlcp", 1, 0.3), ("full", 0, 1.0))),
    )
    rows = score_summary(table)
    assert [(row["network"], row["ipc"], row["method"]) for row in rows] == [
        ("ConvNet-3", 1, "vlcp"),
        ("ConvNet-3", 1, "random"),
        ("ConvNet-3", 10, "vlcp"),
        ("ConvNet-3", 10, "random"),
        ("ConvNet-4", 1, "vlcp"),
        ("ConvNet-4", 0, "full"),
    ]
    assert [row["difference"] for row in rows if row["method"] == "random"] == pytest.approx([-10, 10], abs=1e-4)
    assert headline(rows, 10, None)[0].startswith("10 distilled images of each of 10 classes reach 90.0")


def test_score_table_is_aligned_text() -> None:
    lines = score_table(SCORED).splitlines()
    assert lines[1].split() == [
        "minimax",
        "ConvNet-3",
        "2",
        "vlcp",
        "2",
        *["82.0", "±", "2.8"] * 2,
        "100.0",
        "±",
        "0.0",
        "0.293",  # (e^0.055 - e^-1) / (e - e^-1), where 0.055 = (0.82 - 0.55) / 2 - (0.98 - 0.82) / 2
    ]
    assert lines[2].endswith("+27.0 ± 7.6 *")
    assert lines[3].split()[2:5] == ["all", "full", "1"]
    assert {line.index(word) for line, word in zip(lines, ("method", "vlcp", "random", "full"), strict=False)} == {
        lines[0].index("method")
    }
    assert score_table(SCORES.empty_table()) == "no scores yet"


def test_scores_json_is_sorted_and_plain() -> None:
    rows = scores_json(SCORED)
    assert [row["trial_id"] for row in rows] == sorted(row["trial_id"] for row in rows)
    assert list(rows[0]) == SCORES.names
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [row["top1_last"] for row in rows] == [0.98, 0.5, 0.6, 0.8, 0.84]
    assert rows[1]["curve"] == [0.1, 0.5]
    assert rows[1]["confusion"] == [2, 0, 1, 1]


def test_headline_names_accuracies_and_significance() -> None:
    claim, basis = headline(score_summary(SCORED), 10, 1297)
    space = "\N{NO-BREAK SPACE}"
    assert claim == (
        f"2 distilled images of each of 10 classes reach 82.0{space}% where 2 random ones reach 55.0{space}%; "
        f"the full 1,297 reach 98.0{space}%"
    )
    assert basis.endswith("The difference to random, +27.0 ± 7.6 points, is more than two of its standard deviations.")
    close = scores(trials("vlcp", 2, (0.5, 0.6)), trials("random", 2, (0.5, 0.6)))
    assert headline(score_summary(close), None, None)[1].endswith(
        "is less than two of its standard deviations: not significant."
    )
    assert headline(score_summary(scores(trials("random", 2, (0.5,)))), 10, None) == ("", "")


def test_dd_ranking_equals_hand_computation() -> None:
    hlr, ior = hard_label_recovery(0.9, 0.4), improvement_over_random(0.7, 0.5)
    assert hlr == pytest.approx(0.5)
    assert ior == pytest.approx(0.2)
    # alpha = 0.5 * 0.2 - 0.5 * 0.5 = -0.15; e^-0.15 = 0.8607, 1 / e = 0.3679, e - 1 / e = 2.3504
    assert label_robust_score(hlr, ior) == pytest.approx((0.860708 - 0.367879) / 2.350402, abs=1e-5)
    assert label_robust_score(hlr, ior, weight=1) == pytest.approx((1.221403 - 0.367879) / 2.350402, abs=1e-5)
    assert label_robust_score(-1, 1) == 1
    assert label_robust_score(1, -1) == 0


def test_dd_ranking_of_percentages_raises() -> None:
    with pytest.raises(ValueError, match=r"90\.0 is not a fraction of 1; divide percentages by 100"):
        hard_label_recovery(90.0, 40.0)
    with pytest.raises(ValueError, match="is not a fraction"):
        improvement_over_random(0.5, 50)
    with pytest.raises(ValueError, match="differences of fractions"):
        label_robust_score(50, 0.1)
