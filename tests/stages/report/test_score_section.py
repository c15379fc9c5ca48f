"""Tests of the score section: table rows, published figures, plotted methods, listed classes, confusions."""

import math
import re
from typing import Any

import numpy as np
import pytest

from tests.stages.report.test_scores import SCORED, scores, sets, trials
from vlcp_ray.stages.report import charts
from vlcp_ray.stages.report.published import Published
from vlcp_ray.stages.report.score_section import (
    MAX_CLASSES,
    evaluation_views,
    not_shown,
    other_budget_rows,
    score_rows,
)
from vlcp_ray.stages.report.scores import score_summary

NAMES = ("cat", "dog")


def figure(*values: Any, epochs: int = 3, batch_size: int = 64, teacher: str = "") -> Published:
    """A published figure, of the budget of `trials` unless it is given."""
    return Published(*values, epochs, batch_size, teacher)


def view(*groups: list[dict[str, Any]]) -> dict[str, Any]:
    (only,) = evaluation_views(scores(*groups), NAMES)
    return only


def test_score_rows_dd_ranking_is_fractions_and_blank_where_unknown() -> None:
    vlcp, random, full = score_rows(score_summary(SCORED))
    assert (vlcp["text"]["hlr"], vlcp["text"]["ior"]) == ("0.160", "0.270")  # 0.98 - 0.82, 0.82 - 0.55
    assert 0 < float(vlcp["text"]["label_robust"]) < 1
    assert random["text"]["hlr"] == full["text"]["ior"] == ""


def test_score_rows_device_seconds_are_means_over_sets_and_blank_without_a_set() -> None:
    measured = [
        {"method": method, "ipc": ipc, "seed": seed, "gpu_seconds": gpu, "cpu_seconds": cpu}
        for method, ipc, seed, gpu, cpu in (
            ("vlcp", 2, 0, 1000.0, 1.0),
            ("vlcp", 2, 1, 1500.5, 2.0),
            ("vlcp", 5, 0, 9.0, 9.0),
            ("random", 2, 0, 0.0, None),
        )
    ]
    stated = [figure("minimax", "ConvNet-3", 2, "vlcp", 61.5, None)]
    rows = score_rows(score_summary(SCORED), stated, measured)
    shown = [(row["method"], row["text"]["gpu_seconds"], row["text"]["cpu_seconds"]) for row in rows]
    assert shown == [("vlcp", "1,250.2", "1.5"), ("random", "0.0", ""), ("vlcp", "", ""), ("full", "", "")]


def test_score_rows_published_figures_follow_measured_ones_of_their_ipc() -> None:
    stated = [figure("minimax", "ConvNet-3", ipc, "d4m", 61.5, std) for ipc, std in ((2, 0.5), (7, None))]
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
    stated = [figure("minimax", "ConvNet-3", 2, "vlcp", 61.5, None)]
    with_it, without = (evaluation_views(scores(*groups), NAMES, figures)[0]["by_ipc"] for figures in (stated, ()))
    assert "vlcp, published" in with_it
    assert "vlcp, published" not in without


def test_not_shown_lists_differences_without_a_star() -> None:
    clear = sets("d4m", 2, (0.1, 0.11, 0.13))
    wide = scores(
        sets("vlcp", 2, (0.7, 0.8, 0.9)), sets("random", 2, (0.5, 0.9, 0.7)), clear, trials("rded", 2, (0.7,))
    )
    (rded, random) = not_shown(score_summary(wide))
    assert re.fullmatch(r"random at 2 per class \(\+10\.0 \[-\d+\.\d, \+\d+\.\d\] points\)", random)
    assert rded == "rded at 2 per class (+10.0 points)"  # a single trial
    assert not_shown(score_summary(scores(sets("vlcp", 2, (0.7, 0.8, 0.9)), clear))) == []


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
    assert [row["name"] for row in shown["rows"]] == ["cat", "dog", "2", "3", "4", "5"]
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


@pytest.fixture
def line_charts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every line chart: name of x, title, curves and options."""
    drawn: list[dict[str, Any]] = []

    def keep(curves: Any, x_label: str, title: str, **options: Any) -> str:
        drawn.append({"curves": curves, "x": x_label, "title": title} | options)
        return title

    monkeypatch.setattr(charts, "line_chart", keep)
    return drawn


def test_evaluation_views_curves_over_ipc_are_percent_with_std(line_charts: list[dict[str, Any]]) -> None:
    stated = [
        figure("minimax", "ConvNet-3", 5, "vlcp", 61.5, None),
        figure("minimax", "ConvNet-3", 2, "vlcp", 41.5, None, epochs=4),
        figure("minimax", "ConvNet-4", 10, "vlcp", 71.5, None),
        figure("minimax", "ConvNet-3", 20, "d4m", 81.5, None),
    ]
    groups = [trials("vlcp", 2, (0.8, 0.6)), trials("vlcp", 5, (0.9,)), trials("random", 2, (0.5,))]
    table = scores(*groups, trials("random", 5, (0.4,)), trials("full", 0, (0.95,)))
    (shown,) = evaluation_views(table, NAMES, stated)
    chart = line_charts[0]
    assert (shown["by_ipc"], chart["title"], chart["x"]) == (
        "Top-1 over images per class, ConvNet-3, minimax protocol",
        "Top-1 over images per class, ConvNet-3, minimax protocol",
        "images per class",
    )
    assert list(chart["curves"]) == ["vlcp", "random", "vlcp, published", "full"]
    for name, points in {
        "vlcp": [(2, 70), (5, 90)],
        "random": [(2, 50), (5, 40)],
        "vlcp, published": [(5, 61.5)],  # the other one is of another budget
        "full": [(2, 95), (5, 95)],  # a line over the whole axis
    }.items():
        np.testing.assert_allclose(chart["curves"][name], points, rtol=1e-6)
    assert chart["stds"]["vlcp"] == pytest.approx([100 * 0.1 * math.sqrt(2), 0])
    assert chart["stds"]["random"] == [0, 0]
    assert (chart["ticks"], chart["dashed"]) == ([2, 5], ("vlcp, published", "full"))
    assert shown["ipc"] == 5
    by_bytes = line_charts[1]
    assert (by_bytes["title"], by_bytes["x"]) == (
        "Top-1 over megabytes, ConvNet-3, minimax protocol",
        "MB of images, stored labels and teacher",
    )
    np.testing.assert_allclose(by_bytes["curves"]["vlcp"], [(2, 70), (5, 90)], rtol=1e-6)


def test_evaluation_views_learning_curves_are_means_at_the_largest_ipc(line_charts: list[dict[str, Any]]) -> None:
    first, second, short = trials("vlcp", 5, (0.4, 0.6, 0.9))
    curves = ({"curve": [0.1, 0.4]}, {"curve": [0.3, 0.6]}, {"curve": [0.9]})
    rows = [row | curve for row, curve in zip((first, second, short), curves, strict=True)]
    rded = [row | {"protocol": "rded", "trial_id": "r"} for row in rows[:1]]
    evaluation_views(scores(rows, trials("vlcp", 2, (0.9,)), trials("full", 0, (0.8,)), rded), NAMES)
    _, _, hard, soft = line_charts
    assert (hard["title"], hard["x"]) == ("Top-1 during training, ConvNet-3, minimax protocol", "% of the epochs")
    # A trial with another number of validations than the first one is left out.
    np.testing.assert_allclose(hard["curves"]["vlcp"], [(50, 20), (100, 50)], rtol=1e-6)
    np.testing.assert_allclose(soft["curves"]["vlcp"], [(90, 10), (100, 40)], rtol=1e-6)
    assert list(hard["curves"]) == ["vlcp"]


def test_evaluation_views_bars_name_their_ipc_and_the_full_split(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(charts, "score_chart", lambda *arguments: drawn.append(arguments) or "svg")
    groups = [trials("vlcp", 1, (0.8, 0.6)), trials("random", 1000, (0.5,)), trials("full", 0, (0.98,))]
    assert view(*groups)["bars"] == "svg"
    view(*groups[:2])
    (bars, line, title), (_, no_line, _) = drawn
    assert [(bar.group, bar.label, bar.ours) for bar in bars] == [
        ("1 image per class", "vlcp", True),
        ("1,000 images per class", "random", False),
    ]
    assert bars[0].trials == pytest.approx([0.8, 0.6])
    assert bars[1].trials == pytest.approx([0.5])
    assert (bars[0].value, bars[0].std) == pytest.approx((0.7, 0.1 * math.sqrt(2)))
    assert (bars[1].value, bars[1].std) == (pytest.approx(0.5), None)
    assert line == ("full train split 98.0", pytest.approx(0.98))
    assert (title, no_line) == ("Top-1 accuracy of ConvNet-3, minimax protocol", None)


def test_evaluation_views_of_the_full_split_alone_list_its_classes() -> None:
    shown = view(trials("full", 0, (0.9,)))
    assert (shown["ipc"], shown["by_ipc"]) == (0, "")
    assert shown["classes"]["methods"] == ["full"]
    assert shown["classes"]["rows"][1] == {"name": "dog", "values": [pytest.approx(0.9)]}
    assert shown["confusion"]["method"] == "full"
    assert evaluation_views(scores(), NAMES) == []


def test_evaluation_views_lowest_accuracy_is_over_all_methods() -> None:
    vlcp = trials("vlcp", 2, (0.5,))[0] | {"per_class": [0.75, 0.5]}
    random = trials("random", 2, (0.5,))[0] | {"per_class": [0.25, 0.875]}
    shown = view([vlcp], [random])["classes"]
    assert [row["values"] for row in shown["rows"]] == [[0.75, 0.25], [0.5, 0.875]]
    assert shown["lowest"] == 0.25


@pytest.mark.parametrize(("count", "first", "left_out"), [(MAX_CLASSES, "0", 0), (MAX_CLASSES + 1, "20", 1)])
def test_evaluation_views_of_up_to_twenty_classes_keep_their_order(count: int, first: str, left_out: int) -> None:
    row = trials("vlcp", 2, (0.5,))[0] | {"per_class": [1 - i / 32 for i in range(count)]}
    matrix = np.eye(count, dtype=int) * 3
    matrix[0, 1], matrix[2, 3] = 1, 3
    shown = evaluation_views(scores([row | {"confusion": matrix.ravel().tolist()}]), ())[0]
    assert (shown["classes"]["rows"][0]["name"], shown["classes"]["left_out"]) == (first, left_out)
    confusion = shown["confusion"]
    assert len(confusion["rows"]) == (count if count == MAX_CLASSES else 0)
    assert confusion["names"] == [str(label) for label in range(count)]
    assert confusion["pairs"] == [("2", "3", 0.5), ("0", "1", 0.25)]
    assert confusion["method"] == "vlcp"


def test_evaluation_views_confusion_lists_five_pairs_and_takes_empty_rows() -> None:
    row = trials("vlcp", 2, (0.5,))[0] | {"confusion": [0, 0, 0, 1, 2, 3, 4, 3, 1]}
    confusion = evaluation_views(scores([row]), ("a",))[0]["confusion"]
    # Of label 0 there is no val image; the shares of a row are of its images.
    assert confusion["pairs"] == [("1", "2", 3 / 6), ("2", "a", 4 / 8), ("2", "1", 3 / 8), ("1", "a", 1 / 6)]
    assert confusion["rows"][0] == ("a", [0, 0, 0])
    many = trials("vlcp", 2, (0.5,))[0] | {"confusion": [1] * 9}
    assert len(evaluation_views(scores([many]), ("a",))[0]["confusion"]["pairs"]) == 5


def test_not_shown_of_several_networks_names_them() -> None:
    groups = [
        trials(m, 1000, (v,), n) for n in ("ConvNet-3", "ConvNet-4") for m, v in (("vlcp", 0.8), ("random", 0.55))
    ]
    assert not_shown(score_summary(scores(*groups))) == [
        f"random at 1,000 per class (+25.0 points; {network}, minimax)" for network in ("ConvNet-3", "ConvNet-4")
    ]


def test_score_rows_mark_ours_and_published_ones() -> None:
    stated = [figure("minimax", "ConvNet-3", ipc, "vlcp", 61.46, None) for ipc in (2, 0)]
    rows = score_rows(score_summary(SCORED), stated)
    assert [(row["method"], row["is_published"], row["is_ours"]) for row in rows] == [
        ("vlcp", False, True),
        ("random", False, False),
        ("vlcp", True, False),
        ("full", False, False),
        ("vlcp", True, False),
    ]
    assert (rows[2]["text"]["top1_best"], rows[2]["ipc"], rows[2]["protocol"]) == ("61.5", 2, "minimax")
    assert (rows[2]["network"], rows[2]["difference"], rows[2]["significant"]) == ("ConvNet-3", None, None)
    assert rows[0]["text"]["label_robust"] == "0.293"
    assert set(rows[2]["text"]) == set(rows[0]["text"])


def test_evaluation_views_leave_out_trials_that_failed() -> None:
    good, bad = trials("vlcp", 2, (0.8,)), trials("random", 2, (0.1, 0.1))
    failed = [row | {"outcome": "did_not_learn"} for row in bad]
    assert view(good, failed) == view(good)
    assert evaluation_views(scores(failed), NAMES) == []
    half = view(good, [bad[0], failed[1]])
    assert half["classes"] == view(good, bad[:1])["classes"]


def test_figures_of_another_budget_stand_apart() -> None:
    key = ("minimax", "ConvNet-3", 2, "d4m", 61.5, None)
    others = [figure(*key, epochs=4), figure(*key, batch_size=65), figure(*key, teacher="ResNet-18")]
    summary = score_summary(SCORED)
    assert [row["is_published"] for row in score_rows(summary, others)] == [False] * 3
    apart = other_budget_rows(summary, [*others, figure(*key), figure("minimax", "ConvNet-3", 9, "d4m", 1.0, None)])
    assert [(row["text"]["epochs"], row["text"]["batch_size"], row["text"]["labels"]) for row in apart] == [
        ("4", "64", "hard"),
        ("3", "65", "hard"),
        ("3", "64", "soft, of ResNet-18"),
    ]


def test_several_numbers_of_epochs_have_a_view_each() -> None:
    key = {"protocol": "rded", "labels": "teacher", "teacher": "ResNet-18, 60 epochs"}
    groups = [
        [
            row | key | {"epochs": epochs, "trial_id": f"{epochs}-{row['trial_id']}"}
            for row in trials(method, 2, (value,))
        ]
        for epochs in (300, 500)
        for method, value in (("vlcp", epochs / 1000), ("random", 0.1))
    ]
    first, second = evaluation_views(scores(*groups), NAMES)
    assert (first["title"], second["title"]) == (
        "ConvNet-3, rded protocol, 300 epochs",
        "ConvNet-3, rded protocol, 500 epochs",
    )
    assert first["classes"]["rows"][0]["values"] == pytest.approx([0.3, 0.1])
    rows = score_rows(
        score_summary(scores(*groups)),
        [figure("rded", "ConvNet-3", 2, "d4m", 1.0, None, epochs=500, teacher="ResNet-18")],
    )
    assert [(row["text"]["epochs"], row["method"]) for row in rows] == [
        ("300", "vlcp"),
        ("300", "random"),
        ("500", "vlcp"),
        ("500", "random"),
        ("500", "d4m"),
    ]
    assert rows[0]["text"]["labels"] == "soft, of ResNet-18, 60 epochs"
    assert [row["difference"] for row in rows[1:4:2]] == pytest.approx([20.0, 40.0])


def test_a_figure_of_another_teacher_stands_apart() -> None:
    soft = {"protocol": "rded", "labels": "teacher", "teacher": "ConvNet-6, 60 epochs"}
    summary = score_summary(scores([row | soft for row in trials("vlcp", 2, (0.8,))]))
    stated = [figure("rded", "ConvNet-3", 2, "d4m", 61.5, None, teacher=name) for name in ("ConvNet-6", "ResNet-18")]
    assert [row["text"]["labels"] for row in score_rows(summary, stated)][1:] == ["soft, of ConvNet-6"]
    assert [row["text"]["labels"] for row in other_budget_rows(summary, stated)] == ["soft, of ResNet-18"]
    stored = score_summary(scores([row | soft | {"labels": "stored"} for row in trials("vlcp", 2, (0.8,))]))
    assert len(other_budget_rows(stored, stated)) == 2
