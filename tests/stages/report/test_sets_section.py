"""Tests of the section of the distilled sets: shown classes and clusters, groups of other classes, marked words."""

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray.stages.report.sets_section import GROUP_CLASSES, Budget, class_groups, highlight


def sizes(classes: int, clusters: int) -> pa.Table:
    """Clusters of each class, the last one the largest."""
    label, cluster = (axis.ravel().astype(np.int32) for axis in np.mgrid[:classes, :clusters])
    ids = [f"{a}-{b}" for a, b in zip(label, cluster, strict=True)]
    return pa.table({"prototype_id": ids, "label": label, "cluster": cluster, "size": cluster + 1})


@pytest.mark.parametrize(("sets", "count"), [(0, 20), (1, 20), (3, 20), (12, 10), (60, 3)])
def test_budget_shown_labels_are_fewer_for_more_sets(sets: int, count: int) -> None:
    assert Budget(sets, 1).shown_labels([*range(1000), 5, 5]) == list(range(count))


def test_budget_max_clusters_is_smaller_for_more_sets_and_classes() -> None:
    assert Budget(2, 1).max_clusters(10) == 10
    assert Budget(9, 3).max_clusters(10) == 6
    assert Budget(6, 3).max_clusters(20) == 5
    assert Budget(60, 1).max_clusters(3) == 1


def test_budget_shown_prototypes_are_the_first_and_the_largest_clusters() -> None:
    budget = Budget(6, 3)
    shown = budget.shown_prototypes(sizes(30, 50))
    assert sorted(set(shown["label"].to_pylist())) == list(range(20))
    first = [row["cluster"] for row in shown.to_pylist() if row["label"] == 0]
    assert first == [*range(10), 45, 46, 47, 48, 49]
    assert len(budget.shown_prototypes(sizes(2, 3))) == 6


def test_class_groups_have_at_most_a_hundred_classes() -> None:
    names = [f"c{label:04}" for label in range(250)]
    table = pa.table({"label": range(250), "class_name": names, "image": [b""] * 250})
    groups = class_groups(table.take(list(range(249, -1, -1))))
    assert [len(group["rows"]) for group in groups] == [GROUP_CLASSES, GROUP_CLASSES, 50]
    assert (groups[1]["first"], groups[1]["last"]) == ("c0100", "c0199")
    assert class_groups(None) == []


def test_highlight_marks_whole_words_and_keeps_the_text() -> None:
    pieces = highlight("Red, covered; RED 7!", ["red"])
    assert [piece for piece, marked in pieces if marked] == ["Red", "RED"]
    assert "".join(piece for piece, _ in pieces) == "Red, covered; RED 7!"
    assert highlight("", ["red"]) == []
