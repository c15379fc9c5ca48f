"""The section of the distilled sets: their images, their prototypes class by class, their outliers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.stages.report.contents import DistilledSet, Report

#: Classes shown in full of one set, and of all sets together.
MAX_CLASSES, MAX_CLASS_ROWS = 20, 120
#: Images shown of a class.
MAX_IMAGES: Final = 10
#: Clusters shown of a class, and of all classes of all sets of the first seed together.
MAX_PROTOTYPES, MAX_CELLS = 10, 200
#: Real images beside a centroid, and outliers of a class.
MAX_NEAREST, MAX_OUTLIERS = 3, 8
#: Classes in a group of those that are shown with one small image each.
GROUP_CLASSES: Final = 100
_MAX_OTHER_WORDS: Final = 12
_PROTOTYPE: Final = ["prototype_id", "label", "class_name", "cluster", "size", "text", "words"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """Limits on what is shown of each set, which keep the page small.

    Args:
        sets: number of distilled sets in the report.
        seeds: number of their seeds.
    """

    sets: int
    seeds: int

    @property
    def max_classes(self) -> int:
        """Classes shown in full of each set."""
        return min(MAX_CLASSES, max(3, MAX_CLASS_ROWS // max(1, self.sets)))

    def max_clusters(self, classes: int) -> int:
        """Clusters shown of each class, given the number of classes, in the sets of the first seed."""
        sets = max(1, self.sets // max(1, self.seeds))
        return max(1, min(MAX_PROTOTYPES, MAX_CELLS // (sets * max(1, classes))))

    def shown_labels(self, labels: Iterable[int]) -> list[int]:
        """Return the labels of the classes that are shown in full: the lowest ones."""
        return sorted(set(labels))[: self.max_classes]

    def shown_prototypes(self, prototypes: pa.Table) -> pa.Table:
        """Return the PROTOTYPES rows whose images are shown: the first clusters of each class, and the largest ones."""
        labels = self.shown_labels(prototypes["label"].to_pylist())
        kept: list[int] = []
        for label in labels:
            of_class = pc.indices_nonzero(pc.equal(prototypes["label"], label)).to_pylist()
            rows = [(i, *(prototypes[name][i].as_py() for name in ("cluster", "size"))) for i in of_class]
            largest = sorted(rows, key=lambda row: (-row[2], row[1]))[: self.max_clusters(len(labels))]
            first = sorted(rows, key=lambda row: row[1])[:MAX_IMAGES]
            kept += sorted({row[0] for row in (*first, *largest)})
        return prototypes.take(pa.array(kept, pa.int64()))


def set_views(report: Report) -> list[Row]:
    """Select and arrange what the template shows of each set; only the first seed's sets show their prototypes."""
    seeds = list(dict.fromkeys(distilled.seed for distilled in report.sets))
    budget = Budget(len(report.sets), len(seeds))
    return [_set_view(distilled, budget, report, detailed=distilled.seed == seeds[0]) for distilled in report.sets]


def count_images(views: Sequence[Row]) -> int:
    """Count the images that the views show."""
    classes = [class_view for view in views for class_view in view["classes"]]
    cells = sum(2 + len(row["real"]) for class_view in classes for row in class_view["prototypes"])
    return cells + sum(len(class_view["images"]) + len(class_view["outliers"]) for class_view in classes)


def class_groups(classes: pa.Table | None) -> list[Row]:
    """Cut the classes that are shown with one image each into groups.

    Args:
        classes: label, class_name, image.

    Returns the first and last class_name of each group, and its rows.
    """
    rows = [] if classes is None else classes.sort_by("label").to_pylist()
    groups = [rows[i : i + GROUP_CLASSES] for i in range(0, len(rows), GROUP_CLASSES)]
    return [{"first": group[0]["class_name"], "last": group[-1]["class_name"], "rows": group} for group in groups]


def highlight(text: str, words: Iterable[str]) -> list[tuple[str, bool]]:
    """Cut a text into pieces, each with whether it is one of the words; the pieces joined are the text."""
    marked = {word.lower() for word in words}
    return [(piece, piece.lower() in marked) for piece in re.split(r"([^\W\d_]+)", text) if piece]


def _set_view(distilled: DistilledSet, budget: Budget, report: Report, *, detailed: bool) -> Row:
    labels = budget.shown_labels(
        [*distilled.synthetic["label"].to_pylist(), *distilled.prototypes["label"].to_pylist()]
    )
    images = _of_labels(distilled.synthetic, labels, "image_id")
    prototypes = _of_labels(distilled.prototypes.select(_PROTOTYPE), labels, "cluster") if detailed else []
    image_files = _image_files(distilled, images)
    max_clusters = budget.max_clusters(len(labels))
    views = [_class_view(label, images, prototypes, image_files, max_clusters) for label in labels]
    for label, view in zip(labels, views, strict=True):
        view["dropped_words"] = report.dropped_words.get(label, ())
        view["outliers"] = _outliers(distilled, label) if detailed else []
        view["n_outliers"] = distilled.outlier_counts.get(label, 0)
    return {
        "name": f"seed {distilled.seed} · {distilled.ipc:,} per class",
        "seed": distilled.seed,
        "ipc": distilled.ipc,
        "classes": views,
        "shown": sum(len(view["images"]) for view in views),
        "n_images": distilled.n_images,
        "n_classes": distilled.n_classes,
        "has_prototypes": any(view["prototypes"] for view in views),
        "detailed": detailed,
        "max_clusters": max_clusters,
    }


def _of_labels(table: pa.Table, labels: Sequence[int], order: str) -> list[Row]:
    selected = table.filter(pc.is_in(table["label"], value_set=pa.array(labels, table["label"].type)))
    rows: list[Row] = selected.sort_by([("label", "ascending"), (order, "ascending")]).to_pylist()
    return rows


def _image_files(distilled: DistilledSet, images: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the image files of the prototypes by kind and prototype_id: one synthetic, one decoded, several real."""
    decoded = [] if distilled.centroids is None else distilled.centroids.select(["prototype_id", "image"]).to_pylist()
    real: dict[str, list[bytes]] = {}
    for row in distilled.nearest.sort_by([("prototype_id", "ascending"), ("distance", "ascending")]).to_pylist():
        real.setdefault(row["prototype_id"], []).append(row["image"])
    return {
        "synthetic": {row["prototype_id"]: row["image"] for row in images},
        "decoded": {row["prototype_id"]: row["image"] for row in decoded},
        "real": {prototype_id: files[:MAX_NEAREST] for prototype_id, files in real.items()},
    }


def _class_view(
    label: int,
    images: Sequence[Row],
    prototypes: Sequence[Row],
    image_files: Mapping[str, Mapping[str, Any]],
    max_clusters: int,
) -> Row:
    own_images = [row for row in images if row["label"] == label]
    clusters = [row for row in prototypes if row["label"] == label]
    largest = sorted(clusters, key=lambda row: (-row["size"], row["cluster"]))[:max_clusters]
    return {
        "name": next((row["class_name"] for row in (*own_images, *clusters)), str(label)),
        "images": [row["image"] for row in own_images[:MAX_IMAGES]],
        "prototypes": [_prototype_view(row, image_files) for row in largest],
    }


def _prototype_view(row: Row, image_files: Mapping[str, Mapping[str, Any]]) -> Row:
    files = {kind: image_files[kind].get(row["prototype_id"]) for kind in ("decoded", "synthetic")}
    spans = highlight(row["text"], row["words"])
    used = {span.lower() for span, marked in spans if marked}
    other_words = [word for word in row["words"] if word not in used][:_MAX_OTHER_WORDS]
    real = image_files["real"].get(row["prototype_id"], [])
    return row | files | {"real": real, "spans": spans, "other_words": other_words}


def _outliers(distilled: DistilledSet, label: int) -> list[bytes]:
    if distilled.outliers is None:
        return []
    of_class = distilled.outliers.filter(pc.equal(distilled.outliers["label"], label))
    files: list[bytes] = of_class.sort_by([("distance", "descending"), ("image_id", "ascending")])["image"].to_pylist()
    return files[:MAX_OUTLIERS]
