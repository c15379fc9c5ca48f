"""Tests of the summary of scores: means, differences and DD-Ranking against hand computation; table, JSON, headline."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.stages.report.dd_ranking import label_robust_score
from vlcp_ray.stages.report.scores import (
    differences_json,
    headline,
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
            "augmented": True,
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


def sets(method: str, ipc: int, values: Sequence[float], network: str = "ConvNet-3") -> list[dict[str, Any]]:
    """One trial of the set of each seed."""
    rows = trials(method, ipc, values, network)
    return [row | {"seed": seed, "repeat": 0} for seed, row in enumerate(rows)]


SCORED = scores(trials("random", 2, (0.5, 0.6)), trials("full", 0, (0.98,)), trials("vlcp", 2, (0.8, 0.84)))


def test_score_summary_equals_hand_computation() -> None:
    vlcp, random, full = score_summary(SCORED)
    assert [row["method"] for row in (vlcp, random, full)] == ["vlcp", "random", "full"]
    assert vlcp["n"] == 2
    assert vlcp["top1_last_mean"] == pytest.approx(0.82)
    assert vlcp["top1_last_std"] == pytest.approx(0.02 * math.sqrt(2))
    assert vlcp["top5_last_std"] == 0.0
    assert random["difference"] == pytest.approx(27.0, abs=1e-4)
    # Welch: 27 points, standard error 5.39 (the root of 8/2 + 50/2), 1.31 degrees of freedom.
    assert (random["pairs"], random["significant"]) == (0, False)
    assert random["low"] < 0 < random["high"]
    assert random["p"] == random["p_holm"] == pytest.approx(0.082, abs=0.01)
    for row in (vlcp, full):
        assert [row[name] for name in ("difference", "low", "p", "p_holm", "pairs", "significant")] == [None] * 6
    assert full["top1_last_std"] is None


def test_score_summary_pairs_the_sets_of_a_seed() -> None:
    """A constant lead over sets that differ much is shown in pairs, and lost where the pairs are mixed up."""
    values = (0.5, 0.7, 0.9)
    ours, mixed = sets("vlcp", 2, [v + d for v, d in zip(values, (0.02, 0.021, 0.022), strict=True)]), values[::-1]
    paired, lost = (score_summary(scores(ours, sets("random", 2, other)))[1] for other in (values, mixed))
    assert (paired["pairs"], paired["significant"], paired["difference"]) == (3, True, pytest.approx(2.1, abs=1e-4))
    assert 0 < paired["low"] < 2.1 < paired["high"]
    assert (lost["pairs"], lost["significant"], lost["difference"]) == (3, False, pytest.approx(2.1, abs=1e-4))


def test_score_summary_corrects_for_the_methods_of_a_table_only() -> None:
    ours, other = sets("vlcp", 2, (0.80, 0.81, 0.82)), (0.78, 0.78, 0.80)
    alone = score_summary(scores(ours, sets("random", 2, other)))
    (p,) = [row["p"] for row in alone if row["p"] is not None]
    assert 0.01 < p < 0.05
    assert alone[1]["significant"] is True
    among = score_summary(scores(ours, *(sets(name, 2, other) for name in ("random", "d4m", "rded"))))
    assert [row["p_holm"] for row in among[1:]] == pytest.approx([3 * p] * 3)
    assert not any(row["significant"] for row in among)
    apart = score_summary(
        scores(ours, sets("random", 2, other), sets("vlcp", 5, other), sets("random", 5, (0.1, 0.2, 0.4)))
    )
    assert apart[1]["p_holm"] == apart[1]["p"] == p
    assert score_summary(scores(*(rows for rows in (sets("random", 2, other), ours)))) == alone


def test_score_summary_of_one_trial_has_no_std_and_no_significance() -> None:
    table = scores(trials("vlcp", 1, (0.8,)), trials("random", 1, (0.5,)))
    row = score_summary(table)[1]
    assert (row["difference"], row["pairs"]) == (pytest.approx(30, abs=1e-4), 0)
    assert [row[name] for name in ("top1_last_std", "low", "high", "p", "p_holm", "significant")] == [None] * 6
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
    assert re.search(r"  \+27\.0 \[-\d+\.\d, \+\d+\.\d\]$", lines[2])
    assert "* p < 0.05 after Holm's correction" in lines[5]
    clear = scores(sets("vlcp", 2, (0.8, 0.81, 0.82)), sets("random", 2, (0.5, 0.51, 0.53)))
    assert re.search(r"  \+29\.7 \[\+28\.2, \+31\.1\] \*$", score_table(clear).splitlines()[2])
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
    where = f"at 2 per class{f', labels of {value}' if name == 'teacher' else ''} (minimax, ConvNet-3)"
    assert f"not compared: random {where}, of another budget than vlcp" in score_table(table)
    assert "not compared" not in score_table(SCORED)


def test_ars_needs_trials_without_augmentation_of_the_set_and_of_random() -> None:
    groups = [trials("vlcp", 2, (0.8, 0.84)), trials("random", 2, (0.5, 0.6))]
    plain = [
        [row | {"augmented": False, "trial_id": f"{row['trial_id']}-plain"} for row in trials(method, 2, values)]
        for method, values in (("vlcp", (0.7, 0.6)), ("random", (0.45,)))
    ]
    ours, random = score_summary(scores(*groups, *plain))
    beta = (0.82 - 0.55) / 2 + (0.65 - 0.45) / 2
    assert ours["ars"] == pytest.approx((math.exp(beta) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert random["ars"] is None
    assert (ours["n"], ours["top1_last_mean"]) == (2, pytest.approx(0.82))  # of those with augmentation
    lines = score_table(scores(*groups, *plain)).splitlines()
    assert lines[0].split("robust")[1].split() == ["ARS", "vlcp", "ahead"]
    assert f"{ours['ars']:.3f}" in lines[1]
    for part in (plain[:1], plain[1:], []):
        assert score_summary(scores(*groups, *part))[0]["ars"] is None
    assert "ARS" not in score_table(scores(*groups))
    failed = [row | {"outcome": "diverged"} for row in plain[1]]
    assert score_summary(scores(*groups, plain[0], failed))[0]["ars"] is None
    half = [plain[0][0], plain[0][1] | {"outcome": "did_not_learn"}]
    assert score_summary(scores(*groups, half, plain[1]))[0]["ars"] is None
    told = "not counted: minimax, ConvNet-3, vlcp at 2 per class: 1 of 2 without augmentation did not learn"
    assert told in score_table(scores(*groups, half, plain[1]))


def test_rows_of_several_numbers_of_epochs_name_theirs() -> None:
    groups = [
        [
            row | {"epochs": epochs, "trial_id": f"{epochs}-{row['trial_id']}", "outcome": outcome}
            for row in trials(method, 2, (value, value + 0.01))
        ]
        for epochs in (300, 500)
        for method, value, outcome in (
            ("vlcp", 0.8, ""),
            ("random", 0.5, "" if epochs == 500 else "did_not_learn"),
            ("d4m", 0.79, ""),
        )
    ]
    table = scores(*groups)
    failed = "not counted: minimax, ConvNet-3, random at 2 per class, 300 epochs: 2 of 2 did not learn"
    assert [line for line in score_table(table).splitlines() if line.startswith("not counted")] == [failed]
    found = [(row["epochs"], row["method"]) for row in differences_json(table)]
    assert found == [(300, "d4m"), (500, "d4m"), (500, "random")]
    assert "after the last epoch of 300, minimax protocol" in headline(score_summary(table), 6, None)[1]


def test_headline_says_that_random_had_another_budget() -> None:
    random = [row | {"steps": 7} for row in trials("random", 2, (0.5, 0.6))]
    _, basis = headline(score_summary(scores(trials("vlcp", 2, (0.8, 0.84)), random)), 6, None)
    assert basis.endswith("The random images were trained on with another budget: a difference to them is not shown.")


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
    assert re.search(r"random, \+27\.0 \[.*\] points, is not shown \(p = 0\.08\d? after Holm's correction\)\.$", basis)
    clear = scores(sets("vlcp", 2, (0.8, 0.81, 0.82)), sets("random", 2, (0.5, 0.51, 0.53)))
    basis = headline(score_summary(clear), None, None)[1]
    assert re.search(r"\+29\.7 \[.*\] points, is significant \(p = 0\.0\d+ after Holm's correction\)\.$", basis)
    assert headline(score_summary(scores(trials("random", 2, (0.5,)))), 10, None) == ("", "")


def test_score_summary_of_equal_scores_has_no_interval_and_no_star() -> None:
    same = score_summary(scores(trials("vlcp", 2, (0.5, 0.5)), trials("random", 2, (0.5, 0.5))))
    assert (same[1]["difference"], same[1]["low"], same[1]["p"], same[1]["significant"]) == (0, None, None, None)


def test_differences_json_is_plain_and_has_the_compared_rows() -> None:
    table = scores(sets("vlcp", 2, (0.8, 0.81, 0.82)), sets("random", 2, (0.5, 0.51, 0.53)), trials("full", 0, (0.9,)))
    (row,) = differences_json(table)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert [row[name] for name in ("protocol", "network", "ipc", "method")] == ["minimax", "ConvNet-3", 2, "random"]
    assert (row["difference"], row["pairs"], row["significant"]) == (pytest.approx(29.6667, abs=1e-4), 3, True)
    assert row["difference"] == round(row["difference"], 6)
    assert row["low"] < row["difference"] < row["high"]
    assert 0 < row["p"] == row["p_holm"] < 0.05
    assert differences_json(SCORES.empty_table()) == []


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
        "The trials are too few, or too equal, for an interval: a difference to random is not shown."
    )
    alone = headline(score_summary(scores(trials("vlcp", 1, (0.8, 0.9)))), 1234, None)
    assert alone == (
        f"1 distilled image of each of 1,234 classes reaches 85.0{space}%",
        "Top-1 of ConvNet-3 after the last epoch, minimax protocol, mean over 2 trials.",
    )


def failed(rows: list[dict[str, Any]], outcome: str) -> list[dict[str, Any]]:
    return [row | {"outcome": outcome, "train_loss": math.nan} for row in rows]


def test_failed_trials_are_in_no_mean_and_no_star() -> None:
    good, bad = trials("vlcp", 2, (0.8, 0.82, 0.81)), trials("random", 2, (0.5, 0.52, 0.1))
    assert score_summary(scores(good, trials("random", 2, (0.5, 0.52, 0.51))))[1]["significant"]
    table = scores(good, [*bad[:2], *failed(bad[2:], "did_not_learn")])
    ours, random = score_summary(table)
    assert (random["n"], random["failed"], random["top1_last_mean"]) == (2, {"did_not_learn": 1}, pytest.approx(0.51))
    assert (ours["n"], ours["failed"], random["significant"]) == (3, {}, False)
    assert score_summary(scores(good, bad[:2]))[1]["significant"]  # the same trials, and none that failed
    assert "is not shown (some trainings are not counted)" in headline(score_summary(table), 10, 100)[1]
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
