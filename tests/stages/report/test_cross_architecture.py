"""Tests of the table of teachers by students: means and intervals by hand, the page and the text."""

import dataclasses
from typing import Any

import pytest
from scipy import stats

from tests.stages.report.test_render import EMPTY, Page
from tests.stages.report.test_scores import scores, sets, trials
from vlcp_ray.stages.report.cross_architecture import cells, cells_json, format_cell, matrices
from vlcp_ray.stages.report.differences import mean_interval
from vlcp_ray.stages.report.render import render
from vlcp_ray.stages.report.score_section import evaluation_views, score_rows
from vlcp_ray.stages.report.scores import differences_json, headline, score_summary, score_table

VALUES = {
    ("A, 9 epochs", "ConvNet-3"): (0.5, 0.6, 0.7),
    ("A, 9 epochs", "vgg11"): (0.3, 0.3, 0.3),
    ("B, 9 epochs", "ConvNet-3"): (0.4, 0.5, 0.45),
    ("B, 9 epochs", "vgg11"): (0.1, 0.2, 0.3),
}


def soft(teacher: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"protocol": "rded", "labels": "teacher", "teacher": teacher} for row in rows]


SCORED = scores(
    *(soft(teacher, sets("vlcp", 2, values, network)) for (teacher, network), values in VALUES.items()),
    *(soft(teacher, sets("random", 2, (0.2, 0.25, 0.2), network)) for teacher, network in VALUES),
    trials("vlcp", 2, (0.8, 0.9)),
)


def test_cells_are_means_over_seeds_with_t_intervals() -> None:
    found = {(cell["method"], cell["teacher"], cell["network"]): cell for cell in cells(SCORED)}
    assert len(found) == 8  # hard labels have one network
    for (teacher, network), values in VALUES.items():
        cell = found["vlcp", teacher, network]
        assert cell["top1"] == pytest.approx(sum(values) / 3)
        assert (cell["seeds"], cell["trials"]) == (3, 3)
    spread = found["vlcp", "B, 9 epochs", "vgg11"]
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (spread["low"], spread["high"]) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert found["vlcp", "A, 9 epochs", "vgg11"]["low"] is None  # equal values
    assert list(cells_json(SCORED)[0])[:6] == ["protocol", "ipc", "epochs", "method", "teacher", "network"]


def test_cells_leave_out_trials_that_did_not_learn() -> None:
    rows = SCORED.to_pylist()
    failed = [row | {"outcome": "did_not_learn"} if row["teacher"][:1] == "A" else row for row in rows]
    assert {cell["teacher"] for cell in cells(scores(failed))} == {"B, 9 epochs"}


def test_a_single_seed_has_the_interval_of_its_repeats() -> None:
    rows = trials("vlcp", 2, (0.1, 0.2, 0.3))
    mean, low, high = mean_interval(rows)
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (mean, low, high) == (pytest.approx(0.2), pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert mean_interval(rows[:1]) == (pytest.approx(0.1), None, None)


def test_matrix_has_a_row_for_each_method_and_teacher_and_a_column_for_each_student() -> None:
    (matrix,) = matrices(SCORED)
    assert (matrix["protocol"], matrix["ipc"], matrix["networks"]) == ("rded", 2, ["ConvNet-3", "vgg11"])
    assert [(row["method"], row["teacher"][0]) for row in matrix["rows"]] == [
        ("vlcp", "A"),
        ("vlcp", "B"),
        ("random", "A"),
        ("random", "B"),
    ]
    assert matrix["rows"][0]["texts"] == ["60.0 [35.2, 84.8]", "30.0"]
    assert format_cell({"top1": 0.5, "low": None, "high": None}) == "50.0"


def test_matrix_of_the_full_train_split_is_the_last() -> None:
    full = [row for network in ("ConvNet-3", "vgg11") for row in trials("full", 0, (0.9,), network)]
    hard = [row for network in ("ConvNet-3", "vgg11") for row in trials("random", 2, (0.5,), network)]
    assert [matrix["ipc"] for matrix in matrices(scores(full, hard))] == [2, 0]


def test_page_names_the_methods_that_use_the_first_teacher() -> None:
    rows = [row | {"method": "moderate"} if row["method"] == "random" else row for row in SCORED.to_pylist()]
    text = Page(render(dataclasses.replace(EMPTY, scores=scores(rows)))).text
    assert "The images of moderate are made with the first teacher of the job." in text
    assert "first teacher" not in Page(render(dataclasses.replace(EMPTY, scores=SCORED))).text


def test_methods_are_compared_under_the_labels_of_the_same_teacher() -> None:
    rows = {(row["teacher"], row["network"], row["method"]): row for row in score_summary(SCORED)}
    for (teacher, network), values in VALUES.items():
        random = rows[teacher, network, "random"]
        assert random["difference"] == pytest.approx(100 * (sum(values) / 3 - 0.65 / 3), abs=1e-4)
        assert not random["is_other_budget"]
    assert {row["teacher"] for row in differences_json(SCORED)} == {"A, 9 epochs", "B, 9 epochs"}


def test_table_and_views_tell_the_teacher_where_there_are_several() -> None:
    lines = score_table(SCORED).splitlines()
    assert "teacher" in lines[0]
    assert sum("B, 9 epochs" in line for line in lines[:10]) == 4
    assert "teacher" not in score_table(scores(trials("vlcp", 2, (0.8, 0.9)))).splitlines()[0]
    titles = [view["title"] for view in evaluation_views(SCORED, ["x"] * 6)]
    assert "vgg11, rded protocol, labels of B, 9 epochs" in titles
    assert len(titles) == len(set(titles)) == 5
    blocks = [row["block"] for row in score_rows(score_summary(SCORED))]
    assert len(set(blocks)) == 5
    soft_only = scores([row for row in SCORED.to_pylist() if row["protocol"] == "rded"])
    claim, basis = headline(score_summary(soft_only), 6, None)
    assert "60.0" in claim
    assert "rded protocol, labels of A, 9 epochs" in basis
