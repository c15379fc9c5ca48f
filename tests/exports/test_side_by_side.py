"""Tests of the scores of several jobs side by side, in every format."""

import csv
import io

from tests.stages.report.test_scores import scores, trials
from vlcp_ray.exports.side_by_side import FORMATS, Column, text

ONE = Column("digits_1", scores(trials("vlcp", 2, (0.8, 0.84)), trials("random", 2, (0.5,))), "a")
TWO = Column("b", scores(trials("random", 2, (0.6, 0.7)), trials("full", 0, (0.98,))), "a")


def test_text_has_a_row_for_each_method_and_a_column_for_each_job() -> None:
    lines = text([ONE, TWO]).splitlines()
    assert lines[0].split() == ["protocol", "network", "ipc", "method", "epochs", "digits_1", "b"]
    assert [line.split()[3] for line in lines[1:4]] == ["vlcp", "random", "full"]
    assert lines[1].split()[5:] == ["82.0", "±", "2.8", "(2)"]
    assert lines[2].split()[5:] == ["50.0", "(1)", "65.0", "±", "7.1", "(2)"]
    assert "†" not in text([ONE, TWO])
    assert text([TWO, ONE]).splitlines()[1:4] != lines[1:4]


def test_other_budgets_and_other_images_are_marked() -> None:
    other = [row | {"batch_size": 32} for row in trials("random", 2, (0.6, 0.7))]
    found = text([ONE, Column("b", scores(other), "images of another job")])
    assert "65.0 ± 7.1† (2)" in found
    assert "† another budget than the first job of the row" in found
    assert "b: other real images than digits_1, so that accuracies are not comparable" in found


def test_a_job_without_scores_is_said_and_has_an_empty_column() -> None:
    found = text([Column("new", scores(), "a"), ONE])
    assert "new: no scores yet" in found
    assert "82.0 ± 2.8 (2)" in found


def test_every_teacher_of_a_protocol_has_a_row_of_its_own() -> None:
    """The labels of a second teacher are no other version of the first one's figure."""

    def labelled(teacher: str, *values: float) -> list[dict[str, object]]:
        return [row | {"labels": "soft", "teacher": teacher} for row in trials("vlcp", 2, values)]

    one = Column("a", scores(labelled("ResNet-18", 0.8), labelled("ConvNet-3", 0.7)), "")
    two = Column("b", scores(labelled("ResNet-18", 0.6)), "")
    head, *rows = (line.split() for line in text([one, two]).splitlines()[:3])
    assert head == ["protocol", "network", "teacher", "ipc", "method", "epochs", "a", "b"]
    assert [(row[2], row[6:]) for row in rows] == [
        ("ConvNet-3", ["70.0", "(1)"]),
        ("ResNet-18", ["80.0", "(1)", "60.0", "(1)"]),
    ]
    lines = FORMATS["latex"]([one, two]).splitlines()
    assert r"\begin{tabular}{lllrlrrr}" in lines
    assert all(line.count("&") == 7 for line in lines if line.endswith(r"\\"))
    assert FORMATS["markdown"]([one, two]).splitlines()[2].count("|") == 9


def test_csv_has_a_line_for_each_row_of_each_job() -> None:
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"]([ONE, TWO]))))
    assert [(line["job"], line["method"], line["trials"]) for line in lines] == [
        ("digits_1", "vlcp", "2"),
        ("digits_1", "random", "1"),
        ("b", "random", "2"),
        ("b", "full", "1"),
    ]
    assert [line["top1_last_mean"] for line in lines] == ["0.820000", "0.500000", "0.650000", "0.980000"]
    assert lines[1]["top1_last_std"] == ""
    assert (lines[0]["steps"], lines[0]["batch_size"], lines[0]["labels"]) == ("6", "64", "hard")


def test_csv_of_a_name_that_a_spreadsheet_would_compute_is_text() -> None:
    rows = [row | {"teacher": "=1+1"} for row in trials("vlcp", 2, (0.8,))]
    (line,) = csv.DictReader(io.StringIO(FORMATS["csv"]([Column("a", scores(rows), "")])))
    assert line["teacher"] == "'=1+1"


def test_latex_escapes_names_and_has_as_many_cells_in_every_row() -> None:
    lines = FORMATS["latex"]([ONE, TWO]).splitlines()
    start = lines.index(r"\begin{tabular}{llrlrrr}")
    rows = [line for line in lines[start:] if line.endswith(r"\\")]
    assert all(row.count("&") == 6 for row in rows)
    assert r"digits\_1 & b \\" in rows[0]
    assert r"82.0 $\pm$ 2.8 (2)" in rows[1]


def test_markdown_is_a_table_whose_names_stay_text() -> None:
    lines = FORMATS["markdown"]([Column("a|b", ONE.trials, "a"), TWO]).splitlines()
    assert lines[0] == r"| protocol | network | ipc | method | epochs | a\|b | b |"
    assert lines[1] == f"|{' --- |' * 7}"
    assert "| 82.0 ± 2.8 (2) |" in lines[2]
