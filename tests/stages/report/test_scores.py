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
        | {
            "epochs": 3,
            "steps": 6,
            "batch_size": 64,
            "labels": "hard",
            "teacher": "",
            "image_bytes": 1_000_000 * ipc,
            "label_bytes": 0,
            "teacher_bytes": 0,
            "seconds": 1.5,
            "curve": [0.1, value],
            "per_class": [value] * 6,
            "train_top1": 1.0,
            "train_loss": 0.5,
            "outcome": "",
            "confusion": [2, 0, 1, 1],
        }
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
        *["3", "6", "64"],  # epochs, steps, batch
        "2",
        *["82.0", "±", "2.8"] * 2,
        "100.0",
        "±",
        "0.0",
        "0.293",  # (e^0.055 - e^-1) / (e - e^-1), where 0.055 = (0.82 - 0.55) / 2 - (0.98 - 0.82) / 2
    ]
    assert lines[2].endswith("+27.0 ± 7.6 *")
    assert lines[3].split()[2:8] == ["all", "full", "3", "6", "64", "1"]
    assert lines[-1] == "minimax: labels hard"
    assert {line.index(word) for line, word in zip(lines, ("method", "vlcp", "random", "full"), strict=False)} == {
        lines[0].index("method")
    }
    assert score_table(SCORES.empty_table()) == "no scores yet"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("steps", 7, "7"), ("batch_size", 32, "32"), ("labels", "stored", "64"), ("teacher", "ConvNet-3, 9 epochs", "64")],
)
def test_rows_of_another_budget_are_not_compared(name: str, value: Any, shown: str) -> None:
    ours, random = trials("vlcp", 2, (0.8, 0.84)), trials("random", 2, (0.5, 0.6))
    table = scores(ours, [row | {name: value} for row in random])
    _, other = score_summary(table)
    assert (other["difference"], other["significant"], other["is_other_budget"]) == (None, None, True)
    assert shown in score_table(table).splitlines()[2]
    assert "not compared: random at 2 per class (minimax, ConvNet-3), of another budget than vlcp" in score_table(table)
    assert "not compared" not in score_table(SCORED)


def test_a_row_of_sets_of_other_sizes_has_a_range_of_steps() -> None:
    first, second = trials("vlcp", 2, (0.8, 0.84))
    table = scores([first, second | {"steps": 1007}])
    (row,) = score_summary(table)
    assert (row["steps"], row["epochs"], row["image_bytes"]) == ((6, 1007), 3, 2_000_000)
    assert "6 to 1,007" in score_table(table)


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


def test_score_summary_of_equal_scores_without_spread_is_not_significant() -> None:
    same = score_summary(scores(trials("vlcp", 2, (0.5, 0.5)), trials("random", 2, (0.5, 0.5))))
    assert (same[1]["difference"], same[1]["difference_std"], same[1]["significant"]) == (0, 0, False)


def test_score_summary_lists_unknown_methods_last_and_by_name() -> None:
    summary = score_summary(scores(*(trials(m, 2, (0.5,)) for m in ("zz", "aa", "random", "vlcp", "rded"))))
    assert [row["method"] for row in summary] == ["vlcp", "rded", "random", "aa", "zz"]


def test_score_summary_dd_ranking_compares_soft_labels_with_hard_ones() -> None:
    """The set loses accuracy under hard labels; it gains over random images with labels of its own kind."""
    hard = [trials("vlcp", 2, (0.6,)), trials("random", 2, (0.5,)), trials("full", 0, (0.9,))]
    soft = [
        [row | {"protocol": "rded", "trial_id": f"soft {row['trial_id']}"} for row in rows]
        for rows in (trials("vlcp", 2, (0.8,)), trials("random", 2, (0.55,)), trials("d4m", 2, (0.7,)))
    ]
    rows = {(row["protocol"], row["method"]): row for row in score_summary(scores(*hard, *soft))}
    found = rows["rded", "vlcp"]
    assert (found["hlr"], found["ior"]) == pytest.approx((0.9 - 0.6, 0.8 - 0.55))
    assert found["label_robust"] == pytest.approx(label_robust_score(0.3, 0.25))
    assert rows["minimax", "vlcp"]["hlr"] == pytest.approx(0.3)
    # d4m has no trials under hard labels; random and full are what the others are compared with.
    for key in (("rded", "d4m"), ("rded", "random"), ("minimax", "random"), ("minimax", "full")):
        assert (rows[key]["hlr"], rows[key]["ior"], rows[key]["label_robust"]) == (None, None, None)


@pytest.mark.parametrize("missing", ["random", "full"])
def test_score_summary_has_no_dd_ranking_without_random_or_the_full_split(missing: str) -> None:
    groups = {
        "vlcp": trials("vlcp", 2, (0.8,)),
        "random": trials("random", 2, (0.5,)),
        "full": trials("full", 0, (0.9,)),
    }
    first = score_summary(scores(*(rows for name, rows in groups.items() if name != missing)))[0]
    assert (first["method"], first["hlr"], first["ior"], first["label_robust"]) == ("vlcp", None, None, None)


def test_score_summary_means_are_of_each_metric() -> None:
    rows = trials("vlcp", 2, (0.25, 0.75))
    rows[0] |= {"top1_best": 0.5, "top5_last": 0.5}
    (row,) = score_summary(scores(rows))
    assert (row["top1_last_mean"], row["top1_best_mean"], row["top5_last_mean"]) == (0.5, 0.625, 0.75)
    assert row["top1_best_std"] == pytest.approx(0.125 * math.sqrt(2))
    assert row["top5_last_std"] == pytest.approx(0.25 * math.sqrt(2))


def test_scores_json_is_rounded_to_six_decimals() -> None:
    (row,) = scores_json(scores([trials("vlcp", 2, (1 / 3,))[0] | {"seconds": 1234.5678}]))
    assert (row["top1_last"], row["curve"], row["per_class"]) == (0.333333, [0.1, 0.333333], [0.333333] * 6)
    assert (row["seconds"], row["ipc"], row["trial_id"]) == (1234.567749, 2, "vlcp-2-ConvNet-3-0")  # of a float32


def test_headline_of_single_trials_without_counts_says_so() -> None:
    space = "\N{NO-BREAK SPACE}"
    table = scores(trials("vlcp", 1, (0.8,)), trials("random", 1, (0.5,)), trials("full", 0, (0.9,)))
    claim, basis = headline(score_summary(table), None, None)
    assert claim == (
        f"1 distilled image per class reaches 80.0{space}% where 1 random one reaches 50.0{space}%; "
        f"the full train split reaches 90.0{space}%"
    )
    assert basis == (
        "Top-1 of ConvNet-3 after the last epoch, minimax protocol, mean over a single trial. "
        "One trial has no standard deviation, so the difference to random may be chance."
    )
    alone = headline(score_summary(scores(trials("vlcp", 1, (0.8, 0.9)))), 1234, None)
    assert alone == (
        f"1 distilled image of each of 1,234 classes reaches 85.0{space}%",
        "Top-1 of ConvNet-3 after the last epoch, minimax protocol, mean over 2 trials.",
    )


def test_dd_ranking_takes_fractions_up_to_their_limits() -> None:
    assert (hard_label_recovery(1, 0), hard_label_recovery(0, 1)) == (1, -1)
    assert (improvement_over_random(1, 0), improvement_over_random(0, 1)) == (1, -1)
    # Without weight for IOR only HLR counts.
    assert label_robust_score(0.0, 1.0, weight=0) == pytest.approx((1 - math.exp(-1)) / (math.e - math.exp(-1)))
    for hlr, ior, weight in (
        (1.01, 0, 0.5),
        (-1.01, 0, 0.5),
        (0, 1.01, 0.5),
        (0, -1.01, 0.5),
        (0, 0, 1.1),
        (0, 0, -0.1),
    ):
        with pytest.raises(ValueError, match="fraction"):
            label_robust_score(hlr, ior, weight)


def failed(rows: list[dict[str, Any]], outcome: str) -> list[dict[str, Any]]:
    return [row | {"outcome": outcome, "train_loss": math.nan} for row in rows]


def test_failed_trials_are_in_no_mean_and_no_star() -> None:
    good, bad = trials("vlcp", 2, (0.8, 0.82, 0.81)), trials("random", 2, (0.5, 0.52, 0.1))
    table = scores(good, [*bad[:2], *failed(bad[2:], "did_not_learn")])
    ours, random = score_summary(table)
    assert (random["n"], random["failed"], random["top1_last_mean"]) == (2, {"did_not_learn": 1}, pytest.approx(0.51))
    assert (ours["n"], ours["failed"], random["significant"]) == (3, {}, False)
    assert score_summary(scores(good, bad[:2]))[1]["significant"]
    lines = score_table(table).splitlines()
    assert "2 of 3" in lines[2]
    assert lines[-1] == "not counted: minimax, ConvNet-3, random at 2 per class: 1 of 3 did not learn"
    assert [row["train_loss"] for row in scores_json(table)].count(None) == 1
    json.dumps(scores_json(table), allow_nan=False)


@pytest.mark.parametrize("method", ["vlcp", "random", "full"])
def test_a_method_whose_trials_all_failed_has_no_numbers(method: str) -> None:
    groups = {
        "vlcp": trials("vlcp", 2, (0.8,)),
        "random": trials("random", 2, (0.5,)),
        "full": trials("full", 0, (0.9,)),
    }
    groups[method] = failed(groups[method], "diverged")
    rows = {row["method"]: row for row in score_summary(scores(*groups.values()))}
    assert (rows[method]["n"], rows[method]["top1_last_mean"], rows[method]["difference"]) == (0, None, None)
    assert all(row["label_robust"] is None for row in rows.values())
    assert rows["random"]["significant"] is None
    claim, basis = headline(list(rows.values()), 10, 100)
    assert claim.startswith("No training of vlcp at 2 images per class has learned") == (method == "vlcp")
    assert ("1 of 1 diverged." in basis) == (method == "vlcp")
    half = scores(trials("vlcp", 2, (0.8,)), failed(trials("vlcp", 2, (0.1,)), "did_not_learn"))
    assert "mean over 1 of 2 trials" in headline(score_summary(half), 10, 100)[1]
    text = score_table(scores(*groups.values()))
    assert f"{method} {'on the full train split' if method == 'full' else 'at 2 per class'}: 1 of 1 diverged" in text
    json.dumps(list(rows.values()), allow_nan=False)


def test_score_table_of_up_to_five_classes_has_no_top5() -> None:
    rows = trials("vlcp", 2, (0.8,))
    assert "top-5" in score_table(scores(rows)).splitlines()[0]
    few = score_table(scores([row | {"per_class": [0.8] * 5} for row in rows])).splitlines()
    assert "top-5" not in few[0]
    assert "100.0" not in few[1]
