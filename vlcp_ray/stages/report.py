"""Knows how a run is told: everything worth seeing of it, on one self-contained HTML page."""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray import charts
from vlcp_ray.images import decode
from vlcp_ray.schemas import REASONS
from vlcp_ray.score_views import judgements, score_rows
from vlcp_ray.scores import headline, score_summary

#: Stages that answer every row with a row: there, and only there, rows in = rows out + rows rejected.
ROW_WISE: Final = frozenset({"ingest", "pair", "generate"})
#: What is shown in the page of each set; 60 class rows in all keep the page of ImageNet-1K under 20 MB.
MAX_CLASSES, MAX_CLASS_ROWS, MAX_IMAGES, MAX_PROTOTYPES = 20, 60, 10, 3
MAX_EXAMPLES, MAX_VALIDATION = 5, 24
#: Longest side in pixels: of an image that is shown enlarged as it is, of a preview, of a validation grid.
SMALL, PREVIEW, GRID = 64, 144, 1024

_PROTOTYPE: Final = ["prototype_id", "label", "class_name", "cluster", "size", "text", "words"]

Row = dict[str, Any]


@dataclass(frozen=True)
class StageRow:
    """One sealed artifact; `seconds` is None where nothing was computed."""

    name: str
    stage: str
    fingerprint: str
    rows_in: int
    rows: int
    rejected: int
    seconds: float | None
    detail: str

    @property
    def row_wise(self) -> bool:
        """Whether the stage answers every row with a row."""
        return self.stage in ROW_WISE

    @property
    def missing(self) -> int:
        """Rows of a row-wise stage that are neither in its output nor rejected; below 0 where there are too many."""
        return self.rows_in - self.rows - self.rejected if self.row_wise else 0


@dataclass(frozen=True)
class DistilledSet:
    """One distilled set; the tables may hold only the classes of `shown_labels`, if the two totals are given.

    Args:
        prototypes: PROTOTYPES; the latents may be left out, they are not shown.
        synthetic: SYNTHETIC of the method vlcp.
        centroids: SYNTHETIC columns, the centroids decoded without denoising.
        nearest: prototype_id, image_id, image (bytes), distance: the real image nearest to each centroid.
        classes: number of classes of the whole set, where the tables hold a part.
        images: number of images of the whole set, where the tables hold a part.
    """

    seed: int
    ipc: int
    prototypes: pa.Table
    synthetic: pa.Table
    centroids: pa.Table | None
    nearest: pa.Table
    classes: int | None = None
    images: int | None = None

    @property
    def n_classes(self) -> int:
        """Classes of the whole set."""
        return self.classes or max(len(pc.unique(t["label"])) for t in (self.synthetic, self.prototypes))

    @property
    def n_images(self) -> int:
        """Images of the whole set."""
        return self.images or len(self.synthetic)


@dataclass(frozen=True)
class Report:
    """Everything that the page tells; an empty part leaves its section out.

    Args:
        scores: SCORES.
        rejected: REJECTED.
        losses: (step, loss) points of fine-tuning by seed.
        validation: caption and PNG of fine-tuning's sample grids.
        train_rows: images of the full train split.
        class_names: by label.
    """

    title: str
    settings: Mapping[str, Any]
    facts: Mapping[str, str]
    stages: Sequence[StageRow]
    scores: pa.Table
    sets: Sequence[DistilledSet]
    rejected: pa.Table
    losses: Mapping[int, Sequence[tuple[int, float]]]
    validation: Sequence[tuple[str, bytes]]
    train_rows: int | None = None
    class_names: Sequence[str] = ()


def render(report: Report) -> str:
    """The page: one HTML document without script or outside resource, the same text for the same report."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(duration=duration, preview=preview)
    folder = resources.files(__package__)
    environment.loader = jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    summary = score_summary(report.scores)
    sets = [_set_view(chosen, len(report.sets)) for chosen in report.sets]
    return environment.get_template("report.html.j2").render(
        report=report,
        headline=_headline(report, summary),
        score_rows=score_rows(summary),
        judgements=judgements(report.scores, report.class_names),
        sets=sets,
        lead=max(sets, key=lambda view: view["ipc"], default=None),
        loss_chart=_loss_chart(report.losses),
        validation=report.validation[:MAX_VALIDATION],
        longest=max((stage.seconds or 0.0 for stage in report.stages), default=0.0) or 1.0,
        rejected=_rejected(report.rejected),
        settings=_settings(report.settings),
        grid_side=GRID,
        max_prototypes=MAX_PROTOTYPES,
    )


def shown_labels(labels: Iterable[int], sets: int) -> list[int]:
    """The labels that the page shows of each of so many sets: the lowest ones, as many as its size allows."""
    count = min(MAX_CLASSES, max(3, MAX_CLASS_ROWS // max(1, sets)))
    return sorted(set(labels))[:count]


def preview(data: bytes, side: int = PREVIEW) -> dict[str, Any]:
    """An image file as `src`, a data URI, and `small`: kept pixel by pixel, else a JPEG of at most `side` pixels."""
    image = decode(data)
    small = max(image.size) <= SMALL
    if not small:
        image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", quality=80)
    kind = "png" if small else "jpeg"
    return {"src": f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", "small": small}


def duration(seconds: float | None) -> str:
    """Seconds in the words of a clock."""
    if seconds is None:
        return "reused"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def _headline(report: Report, summary: Sequence[Row]) -> tuple[str, str]:
    classes = next((chosen.n_classes for chosen in report.sets), None)
    claim, basis = headline(summary, classes, report.train_rows)
    if claim:
        return claim, basis
    images = sum(chosen.n_images for chosen in report.sets)
    unscored = f"{images:,} distilled images, not scored yet" if images else "Nothing is distilled yet"
    return ("What the compared sets reach" if summary else unscored), ""


def _loss_chart(losses: Mapping[int, Sequence[tuple[int, float]]]) -> str:
    curves = {f"seed {seed}": points for seed, points in losses.items() if points}
    return charts.loss_chart(curves, "Fine-tuning loss by step") if curves else ""


def _set_view(chosen: DistilledSet, sets: int) -> dict[str, Any]:
    known = [*chosen.synthetic["label"].to_pylist(), *chosen.prototypes["label"].to_pylist()]
    labels = shown_labels(known, sets)
    images = _of_labels(chosen.synthetic, labels, "image_id")
    prototypes = _of_labels(chosen.prototypes.select(_PROTOTYPE), labels, "cluster")
    pictures = _pictures(chosen, images, prototypes)
    views = [_class_view(label, images, prototypes, pictures) for label in labels]
    return {
        "name": f"seed {chosen.seed} · {chosen.ipc:,} per class",
        "seed": chosen.seed,
        "ipc": chosen.ipc,
        "classes": views,
        "shown": sum(len(view["images"]) for view in views),
        "n_images": chosen.n_images,
        "n_classes": chosen.n_classes,
        "clusters": max((view["clusters"] for view in views), default=0),
        "by_class": any(view["prototypes"] for view in views),
    }


def _of_labels(table: pa.Table, labels: Sequence[int], order: str) -> list[Row]:
    chosen = table.filter(pc.is_in(table["label"], value_set=pa.array(labels, table["label"].type)))
    rows: list[Row] = chosen.sort_by([("label", "ascending"), (order, "ascending")]).to_pylist()
    return rows


def _pictures(chosen: DistilledSet, images: Sequence[Row], prototypes: Sequence[Row]) -> dict[str, dict[str, bytes]]:
    ids = pa.array([row["prototype_id"] for row in prototypes], pa.string())
    pictures = {"synthetic": {row["prototype_id"]: row["image"] for row in images}}
    for kind, table in (("centroid", chosen.centroids), ("real", chosen.nearest)):
        if table is not None:
            rows = table.filter(pc.is_in(table["prototype_id"], value_set=ids)).select(["prototype_id", "image"])
            pictures[kind] = {row["prototype_id"]: row["image"] for row in rows.to_pylist()}
    return pictures


def _class_view(
    label: int, images: Sequence[Row], prototypes: Sequence[Row], pictures: Mapping[str, Mapping[str, bytes]]
) -> dict[str, Any]:
    own = [row for row in images if row["label"] == label]
    largest = sorted((row for row in prototypes if row["label"] == label), key=lambda row: -row["size"])
    return {
        "name": next(row["class_name"] for row in (*own, *largest)),
        "images": [row["image"] for row in own[:MAX_IMAGES]],
        "clusters": len(largest),
        "prototypes": [_prototype_view(row, pictures) for row in largest[:MAX_PROTOTYPES]],
    }


def _prototype_view(row: Row, pictures: Mapping[str, Mapping[str, bytes]]) -> dict[str, Any]:
    kinds = {kind: pictures.get(kind, {}).get(row["prototype_id"]) for kind in ("centroid", "real", "synthetic")}
    spans = highlight(row["text"], row["words"])
    used = {span.lower() for span, marked in spans if marked}
    return row | kinds | {"spans": spans, "other_words": [word for word in row["words"] if word not in used][:12]}


def highlight(text: str, words: Iterable[str]) -> list[tuple[str, bool]]:
    """The text cut into pieces, each with whether it is one of the words; the pieces joined are the text."""
    chosen = {word.lower() for word in words}
    return [(piece, piece.lower() in chosen) for piece in re.split(r"([^\W\d_]+)", text) if piece]


def _rejected(table: pa.Table) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in table.sort_by([("stage", "ascending"), ("reason", "ascending"), ("image_id", "ascending")]).to_pylist():
        groups.setdefault((row["stage"], row["reason"]), []).append(row)
    return [
        {"stage": key[0], "reason": key[1], "meaning": REASONS.get(key[1], ""), "count": len(rows)}
        | {"examples": rows[:MAX_EXAMPLES]}
        for key, rows in groups.items()
    ]


def _settings(settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {"job": {}}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            sections[name] = {key: _value(inner) for key, inner in value.items()}
        else:
            sections["job"][name] = _value(value)
    return {name: values for name, values in sections.items() if values}


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, default=str, ensure_ascii=False)
