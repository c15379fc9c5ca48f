"""Checks what of a set is shown: which classes, which clusters, whose pictures are read."""

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray.page.sets import PAGE_CLASSES, Budget, highlight, other_pages


def sizes(classes: int, clusters: int) -> pa.Table:
    """Clusters of each class, the last one the largest."""
    label, cluster = (axis.ravel().astype(np.int32) for axis in np.mgrid[:classes, :clusters])
    ids = [f"{a}-{b}" for a, b in zip(label, cluster, strict=True)]
    return pa.table({"prototype_id": ids, "label": label, "cluster": cluster, "size": cluster + 1})


@pytest.mark.parametrize(("sets", "count"), [(0, 20), (1, 20), (3, 20), (12, 10), (60, 3)])
def test_more_sets_show_fewer_classes_each(sets: int, count: int) -> None:
    assert Budget(sets, 1).shown_labels([*range(1000), 5, 5]) == list(range(count))


def test_all_clusters_of_few_classes_are_shown_and_of_many_the_largest() -> None:
    assert Budget(2, 1).prototypes(10) == 10
    assert Budget(9, 3).prototypes(10) == 6
    assert Budget(6, 3).prototypes(20) == 5
    assert Budget(60, 1).prototypes(3) == 1


def test_pictures_are_read_of_the_first_and_the_largest_clusters_alone() -> None:
    budget = Budget(6, 3)
    shown = budget.shown(sizes(30, 50))
    assert sorted(set(shown["label"].to_pylist())) == list(range(20))
    first = [row["cluster"] for row in shown.to_pylist() if row["label"] == 0]
    assert first == [*range(10), 45, 46, 47, 48, 49]
    assert len(budget.shown(sizes(2, 3))) == 6


def test_other_classes_are_cut_into_pages() -> None:
    names = [f"c{label:04}" for label in range(250)]
    table = pa.table({"label": range(250), "class_name": names, "image": [b""] * 250})
    pages = other_pages(table.take(list(range(249, -1, -1))))
    assert [len(page["rows"]) for page in pages] == [PAGE_CLASSES, PAGE_CLASSES, 50]
    assert (pages[1]["first"], pages[1]["last"]) == ("c0100", "c0199")
    assert other_pages(None) == []


def test_highlight_marks_whole_words_and_keeps_the_text() -> None:
    pieces = highlight("Red, covered; RED 7!", ["red"])
    assert [piece for piece, marked in pieces if marked] == ["Red", "RED"]
    assert "".join(piece for piece, _ in pieces) == "Red, covered; RED 7!"
    assert highlight("", ["red"]) == []
