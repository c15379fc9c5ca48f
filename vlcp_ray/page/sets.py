"""Knows what of a distilled set the page shows: a grid of its images, its prototypes class by class, its outliers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.page.contents import DistilledSet, Report

#: Classes shown in full, of one set and of all sets; their images; their clusters, of a class and of the page.
MAX_CLASSES, MAX_CLASS_ROWS, MAX_IMAGES, MAX_PROTOTYPES, MAX_CELLS = 20, 120, 10, 10, 200
#: Real images beside a centroid, and outliers of a class.
MAX_NEAREST, MAX_OUTLIERS = 3, 8
#: Classes of a page of those that are shown by one small image each.
PAGE_CLASSES: Final = 100
_LEFT_OUT_WORDS: Final = 12
_PROTOTYPE: Final = ["prototype_id", "label", "class_name", "cluster", "size", "text", "words"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """How much of each set is shown, so that the page stays small: for so many sets, of so many seeds."""

    sets: int
    seeds: int

    @property
    def classes(self) -> int:
        """Classes of each set."""
        return min(MAX_CLASSES, max(3, MAX_CLASS_ROWS // max(1, self.sets)))

    def prototypes(self, classes: int) -> int:
        """Clusters of each of so many classes, in the sets of the first seed."""
        sets = max(1, self.sets // max(1, self.seeds))
        return max(1, min(MAX_PROTOTYPES, MAX_CELLS // (sets * max(1, classes))))

    def shown_labels(self, labels: Iterable[int]) -> list[int]:
        """The labels that the page shows in full: the lowest ones."""
        return sorted(set(labels))[: self.classes]

    def shown(self, prototypes: pa.Table) -> pa.Table:
        """The PROTOTYPES rows whose pictures are needed: the first of each class for the grid, and the largest."""
        labels = self.shown_labels(prototypes["label"].to_pylist())
        kept: list[int] = []
        for label in labels:
            mine = pc.indices_nonzero(pc.equal(prototypes["label"], label)).to_pylist()
            rows = [(i, *(prototypes[name][i].as_py() for name in ("cluster", "size"))) for i in mine]
            largest = sorted(rows, key=lambda row: (-row[2], row[1]))[: self.prototypes(len(labels))]
            first = sorted(rows, key=lambda row: row[1])[:MAX_IMAGES]
            kept += sorted({row[0] for row in (*first, *largest)})
        return prototypes.take(pa.array(kept, pa.int64()))


def set_views(report: Report) -> list[Row]:
    """Each set of the report as the template shows it; prototypes in detail for the first seed alone."""
    seeds = list(dict.fromkeys(chosen.seed for chosen in report.sets))
    budget = Budget(len(report.sets), len(seeds))
    return [_set_view(chosen, budget, report, detailed=chosen.seed == seeds[0]) for chosen in report.sets]


def pictures_in(views: Sequence[Row]) -> int:
    """How many pictures the views have."""
    classes = [one for view in views for one in view["classes"]]
    cells = sum(2 + len(row["real"]) for one in classes for row in one["prototypes"])
    return cells + sum(len(one["images"]) + len(one["outliers"]) for one in classes)


def other_pages(others: pa.Table | None) -> list[Row]:
    """The classes with one small image each, cut into pages: title and rows of label, class_name, image."""
    rows = [] if others is None else others.sort_by("label").to_pylist()
    pages = [rows[i : i + PAGE_CLASSES] for i in range(0, len(rows), PAGE_CLASSES)]
    return [{"first": page[0]["class_name"], "last": page[-1]["class_name"], "rows": page} for page in pages]


def highlight(text: str, words: Iterable[str]) -> list[tuple[str, bool]]:
    """The text cut into pieces, each with whether it is one of the words; the pieces joined are the text."""
    chosen = {word.lower() for word in words}
    return [(piece, piece.lower() in chosen) for piece in re.split(r"([^\W\d_]+)", text) if piece]


def _set_view(chosen: DistilledSet, budget: Budget, report: Report, *, detailed: bool) -> Row:
    known = [*chosen.synthetic["label"].to_pylist(), *chosen.prototypes["label"].to_pylist()]
    labels = budget.shown_labels(known)
    images = _of_labels(chosen.synthetic, labels, "image_id")
    prototypes = _of_labels(chosen.prototypes.select(_PROTOTYPE), labels, "cluster") if detailed else []
    pictures = _pictures(chosen, images)
    most = budget.prototypes(len(labels))
    views = [_class_view(label, images, prototypes, pictures, most) for label in labels]
    for label, view in zip(labels, views, strict=True):
        view["dropped"] = report.dropped_words.get(label, ())
        view["outliers"] = _outliers(chosen, label) if detailed else []
        view["n_outliers"] = chosen.outlier_counts.get(label, 0)
    return {
        "name": f"seed {chosen.seed} · {chosen.ipc:,} per class",
        "seed": chosen.seed,
        "ipc": chosen.ipc,
        "classes": views,
        "shown": sum(len(view["images"]) for view in views),
        "n_images": chosen.n_images,
        "n_classes": chosen.n_classes,
        "by_class": any(view["prototypes"] for view in views),
        "detailed": detailed,
        "most": most,
        "n_outliers": sum(chosen.outlier_counts.values()),
    }


def _of_labels(table: pa.Table, labels: Sequence[int], order: str) -> list[Row]:
    chosen = table.filter(pc.is_in(table["label"], value_set=pa.array(labels, table["label"].type)))
    rows: list[Row] = chosen.sort_by([("label", "ascending"), (order, "ascending")]).to_pylist()
    return rows


def _pictures(chosen: DistilledSet, images: Sequence[Row]) -> dict[str, dict[str, Any]]:
    decoded = [] if chosen.centroids is None else chosen.centroids.select(["prototype_id", "image"]).to_pylist()
    real: dict[str, list[bytes]] = {}
    for row in chosen.nearest.sort_by([("prototype_id", "ascending"), ("distance", "ascending")]).to_pylist():
        real.setdefault(row["prototype_id"], []).append(row["image"])
    return {
        "synthetic": {row["prototype_id"]: row["image"] for row in images},
        "centroid": {row["prototype_id"]: row["image"] for row in decoded},
        "real": {name: found[:MAX_NEAREST] for name, found in real.items()},
    }


def _class_view(
    label: int,
    images: Sequence[Row],
    prototypes: Sequence[Row],
    pictures: Mapping[str, Mapping[str, Any]],
    most: int,
) -> Row:
    own = [row for row in images if row["label"] == label]
    known = [row for row in prototypes if row["label"] == label]
    largest = sorted(known, key=lambda row: (-row["size"], row["cluster"]))[:most]
    return {
        "label": label,
        "name": next((row["class_name"] for row in (*own, *known)), str(label)),
        "images": [row["image"] for row in own[:MAX_IMAGES]],
        "prototypes": [_prototype_view(row, pictures) for row in largest],
    }


def _prototype_view(row: Row, pictures: Mapping[str, Mapping[str, Any]]) -> Row:
    kinds = {kind: pictures[kind].get(row["prototype_id"]) for kind in ("centroid", "synthetic")}
    spans = highlight(row["text"], row["words"])
    used = {span.lower() for span, marked in spans if marked}
    other = [word for word in row["words"] if word not in used][:_LEFT_OUT_WORDS]
    return row | kinds | {"real": pictures["real"].get(row["prototype_id"], []), "spans": spans, "other_words": other}


def _outliers(chosen: DistilledSet, label: int) -> list[bytes]:
    if chosen.outliers is None:
        return []
    mine = chosen.outliers.filter(pc.equal(chosen.outliers["label"], label))
    found: list[bytes] = mine.sort_by([("distance", "descending"), ("image_id", "ascending")])["image"].to_pylist()
    return found[:MAX_OUTLIERS]
