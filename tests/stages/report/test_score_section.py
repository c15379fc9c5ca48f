"""Tests of the score section: table rows, published figures, plotted methods, listed classes, confusions."""

import re
from typing import Any

import pytest

from tests.stages.report.test_scores import SCORED, scores, trials
from vlcp_ray.stages.report.published import Published
from vlcp_ray.stages.report.score_section import MAX_CLASSES, evaluation_views, insignificant, score_rows
from vlcp_ray.stages.report.scores import score_summary

NAMES = ("cat", "dog")


def view(*groups: list[dict[str, Any]]) -> dict[str, Any]:
    (only,) = evaluation_views(scores(*groups), NAMES)
    return only


def test_score_rows_dd_ranking_is_fractions_and_blank_where_unknown() -> None:
    vlcp, random, full = score_rows(score_summary(SCORED))
    assert (vlcp["text"]["hlr"], vlcp["text"]["ior"]) == ("0.160", "0.270")  # 0.98 - 0.82, 0.82 - 0.55
    assert 0 < float(vlcp["text"]["label_robust"]) < 1
    assert random["text"]["hlr"] == full["text"]["ior"] == ""


def test_score_rows_published_figures_follow_measured_ones_of_their_ipc() -> None:
    stated = [Published("minimax", "ConvNet-3", ipc, "d4m", 61.5, std) for ipc, std in ((2, 0.5), (7, None))]
    rows = score_rows(score_summary(SCORED), stated)
    assert [(row["method"], row["is_published"]) for row in rows] == [
        ("vlcp", False),
        ("random", False),
        ("d4m", True),
        ("full", False),
    ]
    assert (rows[2]["text"]["top1_best"], rows[2]["text"]["top1_last"]) == ("61.5 ± 0.5", "")


def test_evaluation_views_plot_published_figures_of_vlcp() -> None:
    groups = [trials("vlcp", ipc, (0.8,)) for ipc in (2, 5)]
    stated = [Published("minimax", "ConvNet-3", 2, "vlcp", 61.5, None)]
    with_it, without = (evaluation_views(scores(*groups), NAMES, figures)[0]["by_ipc"] for figures in (stated, ()))
    assert "vlcp, published" in with_it
    assert "vlcp, published" not in without


def test_insignificant_lists_differences_below_two_stds() -> None:
    wide = scores(trials("vlcp", 2, (0.7, 0.9)), trials("random", 2, (0.5, 0.6)), trials("d4m", 2, (0.1, 0.1)))
    assert insignificant(score_summary(wide)) == ["random at 2 per class (+25.0 ± 15.8 points)"]
    assert insignificant(score_summary(SCORED)) == []


def test_evaluation_views_plot_vlcp_random_and_the_best_three_others() -> None:
    others = {"rded": 0.7, "herding": 0.6, "random": 0.5, "k-center": 0.4, "d4m": 0.3, "centroid": 0.9}
    groups = [trials(method, ipc, (value,)) for ipc in (1, 5) for method, value in others.items()]
    shown = view(*groups, trials("vlcp", 1, (0.1,)), trials("vlcp", 5, (0.2,)))
    assert shown["classes"]["methods"] == ["vlcp", "random", "centroid", "rded", "herding"]
    for chart in (shown["by_ipc"], shown["learning_curves"]):
        words = re.findall(r"<text[^>]*>([^<]+)</text>", chart)
        assert sorted(word for word in words if word in {"vlcp", *others}) == sorted(shown["classes"]["methods"])


def test_evaluation_views_with_one_ipc_or_one_validation_have_no_curve() -> None:
    one = [row | {"curve": [0.5]} for row in trials("vlcp", 2, (0.5,))]
    assert (view(one)["by_ipc"], view(one)["learning_curves"]) == ("", "")
    assert view(trials("vlcp", 2, (0.5,)))["learning_curves"]


def test_evaluation_views_class_accuracies_include_the_full_split() -> None:
    shown = view(trials("vlcp", 2, (0.8, 0.6)), trials("full", 0, (0.9,)))["classes"]
    assert shown["methods"] == ["vlcp", "full"]
    assert [row["name"] for row in shown["rows"]] == ["cat", "dog"]
    assert shown["rows"][0]["values"] == pytest.approx([0.7, 0.9])
    assert shown["left_out"] == 0


def test_evaluation_views_of_many_classes_list_the_weakest() -> None:
    count = MAX_CLASSES + 5
    row = trials("vlcp", 2, (0.5,))[0] | {"per_class": [1 - i / count for i in range(count)], "confusion": []}
    shown = view([row])
    assert [r["name"] for r in shown["classes"]["rows"]] == [str(i) for i in range(count)][::-1][:MAX_CLASSES]
    assert shown["classes"]["left_out"] == 5
    assert shown["confusion"] is None


def test_evaluation_views_confusion_is_shares_over_all_trials() -> None:
    first, second = trials("vlcp", 2, (0.5, 0.5))
    shown = view([first | {"confusion": [3, 1, 0, 4]}, second | {"confusion": [1, 3, 1, 3]}])["confusion"]
    assert shown["rows"] == [("cat", [0.5, 0.5]), ("dog", [0.125, 0.875])]
    assert shown["pairs"] == [("cat", "dog", 0.5), ("dog", "cat", 0.125)]


def test_evaluation_views_of_rded_start_at_its_first_validation() -> None:
    rded = [row | {"protocol": "rded", "trial_id": "r"} for row in trials("vlcp", 2, (0.5,))]
    hard, soft = evaluation_views(scores(trials("vlcp", 2, (0.5,)), rded), NAMES)
    assert (hard["title"], soft["title"]) == ("ConvNet-3, minimax protocol", "ConvNet-3, rded protocol")
    assert ">92<" in soft["learning_curves"]
    assert ">92<" not in hard["learning_curves"]
    assert ">60<" in hard["learning_curves"]
