"""Tests of the section of the distilled sets: shown classes and clusters, groups of other classes, marked words."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from tests.stages.report.small_report import distilled, full_report, outliers, png, prototypes, synthetic
from vlcp_ray.stages.report.sets_section import (
    GROUP_CLASSES,
    Budget,
    class_groups,
    count_images,
    highlight,
    set_views,
)


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


@pytest.mark.parametrize(("sets", "count"), [(6, 20), (7, 17), (39, 3), (41, 3)])
def test_budget_max_classes_is_a_share_of_120_from_3_to_20(sets: int, count: int) -> None:
    assert Budget(sets, 1).max_classes == count


def test_budget_max_clusters_without_sets_or_classes_is_ten() -> None:
    assert Budget(0, 0).max_clusters(0) == 10
    assert Budget(1, 0).max_clusters(21) == 9  # 200 over 21
    assert Budget(2, 5).max_clusters(201) == 1


def test_budget_shown_prototypes_of_equal_size_are_the_first_clusters() -> None:
    table = sizes(2, 12)
    equal = table.set_column(3, "size", pa.array([5] * len(table)))
    order = np.random.default_rng(0).permutation(len(table))
    shown = Budget(40, 1).shown_prototypes(equal.take(order))  # two of the largest, and the first ten
    assert sorted(shown["prototype_id"].to_pylist()) == sorted(f"{a}-{b}" for a in (0, 1) for b in range(10))


def test_set_views_show_prototypes_of_the_first_seed_only() -> None:
    report = dataclasses.replace(full_report(), sets=(distilled(seed=3), distilled(seed=1), distilled(ipc=1, seed=3)))
    first, second, third = set_views(report)
    assert [view["name"] for view in (first, second, third)] == [
        "seed 3 · 2 per class",
        "seed 1 · 2 per class",
        "seed 3 · 1 per class",
    ]
    assert [view["has_prototypes"] for view in (first, second, third)] == [True, False, True]
    assert [view["detailed"] for view in (first, second, third)] == [True, False, True]
    assert (first["shown"], first["n_images"], first["n_classes"], first["max_clusters"]) == (4, 4, 2, 10)
    # Of each of four clusters a decoded and a synthetic image and three real ones; four images of the set.
    assert [count_images([view]) for view in (first, second, third)] == [4 * 5 + 4, 4, 2 * 5 + 2]
    assert count_images([first, second]) == 28


def test_set_views_show_outliers_and_words_of_their_class() -> None:
    one = dataclasses.replace(distilled(), outliers=outliers(9), outlier_counts={0: 12})
    (view,) = set_views(dataclasses.replace(full_report(), sets=(one,)))
    zero, other = view["classes"]
    assert (zero["name"], other["name"]) == ("class <0>", "class <1>")
    assert zero["outliers"] == [png(i) for i in (8, 7, 6, 5, 4, 3, 2, 1)]  # the farthest first
    assert (zero["n_outliers"], other["n_outliers"], other["outliers"]) == (12, 0, [])
    assert zero["dropped_words"] == [("digit", 1.0), ("grey", 0.75)]
    assert list(other["dropped_words"]) == []
    assert count_images([view]) == 4 * 5 + 4 + 8


def test_set_views_of_a_cluster_have_its_images_and_remaining_words() -> None:
    one = distilled(classes=1, ipc=2)
    words = [f"word{i}" for i in range(20)]
    described = one.prototypes.set_column(8, "words", pa.array([["round", *words], words[:2]]))
    far_first = one.nearest.set_column(3, "distance", pa.array(np.arange(len(one.nearest))[::-1], pa.float32()))
    more = pa.concat_tables([far_first, far_first])
    changed = dataclasses.replace(one, prototypes=described, nearest=more)
    (view,) = set_views(dataclasses.replace(full_report(), sets=(changed,)))
    first, second = view["classes"][0]["prototypes"]
    assert [row["cluster"] for row in (first, second)] == [1, 0]  # the larger cluster is shown first
    assert first["other_words"] == words[:2]
    assert second["other_words"] == words[:12]
    assert [piece for piece, marked in second["spans"] if marked] == ["round", "round"]
    assert (first["synthetic"], first["decoded"]) == (png(1), png(1))
    assert first["real"] == [png(1)] * 3


def test_set_views_of_a_class_have_ten_images_at_most() -> None:
    (view,) = set_views(dataclasses.replace(full_report(), sets=(distilled(classes=1, ipc=12),)))
    assert view["classes"][0]["images"] == [png(k) for k in range(10)]
    assert (view["shown"], view["n_images"]) == (10, 12)
    unnamed = dataclasses.replace(distilled(), prototypes=prototypes(2, 1), synthetic=synthetic(1, 1))
    (view,) = set_views(dataclasses.replace(full_report(), sets=(unnamed,)))
    assert [row["name"] for row in view["classes"]] == ["class <0>", "class <1>"]
