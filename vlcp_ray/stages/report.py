"""Knows how a run is told: everything worth seeing of it, on one self-contained HTML page."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Any, Final

import jinja2
import pyarrow as pa

from vlcp_ray.page import charts
from vlcp_ray.page.contents import Plane, Report, Sample
from vlcp_ray.page.costs import costs, duration, size
from vlcp_ray.page.pictures import preview, side_for
from vlcp_ray.page.scores import insignificant, judgements, score_rows
from vlcp_ray.page.sets import PAGE_CLASSES, other_pages, pictures_in, set_views
from vlcp_ray.published import published
from vlcp_ray.schemas import REASONS
from vlcp_ray.scores import headline, score_summary

MAX_EXAMPLES: Final = 5
#: Epochs and classes of the samples that are shown while the model is tuned.
MAX_EPOCHS, MAX_SAMPLES = 8, 10
_PROGRESS: Final = {
    "loss": "Training loss, mean of the epoch",
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm, mean of the epoch",
}

Row = dict[str, Any]


def render(report: Report) -> str:
    """The page: one HTML document without script or outside resource, the same text for the same report."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    folder = resources.files("vlcp_ray.page")
    environment.loader = jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    sets, samples = set_views(report), _samples(report.validation)
    count = pictures_in(sets) + sum(len(row["images"]) for row in samples["rows"])
    environment.filters.update(duration=duration, size=size, preview=partial(preview, side=side_for(count)))
    return environment.get_template("report.html.j2").render(
        report=report,
        **_judged(report),
        sets=sets,
        lead=max(sets, key=lambda view: (view["ipc"], -view["seed"]), default=None),
        planes=[_plane(plane) for plane in report.planes],
        outliers_removed=any((plane.clusters < 0).any() for plane in report.planes),
        other_pages=other_pages(report.others),
        page_classes=PAGE_CLASSES,
        progress=_progress(report.progress),
        samples=samples,
        costs=costs(report.stages, report.estimates),
        rejected=_rejected(report.rejected, report.rejected_images),
        settings=_settings(report.settings),
        made=_made(report),
    )


def _judged(report: Report) -> Row:
    summary = score_summary(report.scores)
    ingest = report.settings.get("ingest", {})
    stated = published(report.title, ingest.get("classes", ()), len(report.class_names))
    return {
        "headline": _headline(report, summary),
        "score_rows": score_rows(summary, stated),
        "judgements": judgements(report.scores, report.class_names, stated),
        "insignificant": insignificant(summary),
        "stated": stated,
    }


def _headline(report: Report, summary: Sequence[Row]) -> tuple[str, str]:
    classes = next((chosen.n_classes for chosen in report.sets), None)
    claim, basis = headline(summary, classes, report.splits.get("train"))
    if claim:
        return claim, basis
    images = sum(chosen.n_images for chosen in report.sets)
    unscored = f"{images:,} distilled images, not scored yet" if images else "Nothing is distilled yet"
    return ("What the compared sets reach" if summary else unscored), ""


def _made(report: Report) -> list[Row]:
    """Each size of a distilled set against the train split: images, bytes, and how many times fewer they are."""
    rows: dict[int, Row] = {}
    for chosen in report.sets:
        if chosen.ipc in rows or not report.splits.get("train"):
            continue
        smaller = report.train_bytes / chosen.n_bytes if report.train_bytes and chosen.n_bytes else None
        rows[chosen.ipc] = {
            "ipc": chosen.ipc,
            "images": chosen.n_images,
            "fewer": report.splits["train"] / max(1, chosen.n_images),
            "n_bytes": chosen.n_bytes,
            "smaller": smaller,
        }
    return [rows[ipc] for ipc in sorted(rows)]


def _plane(plane: Plane) -> Row:
    """A class's t-SNE as an SVG: with outliers before and after their removal, else once."""
    after = charts.Cloud("outliers removed", plane.points, plane.clusters, plane.centres)
    clouds = [after]
    if plane.centres_before is not None:
        inside = plane.clusters >= 0
        before = charts.Cloud("all images", plane.points, plane.clusters, plane.centres_before)
        clouds = [before, charts.Cloud(after.title, plane.points[inside], plane.clusters[inside], plane.centres)]
    chart = charts.cloud_chart(clouds, f"t-SNE of the latents of {plane.class_name} with the centres of its clusters")
    return {"name": plane.class_name, "chart": chart, "shown": len(plane.points), "total": plane.total}


def _progress(progress: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """A figure for each quantity that fine-tuning has recorded by epoch: its title and an SVG, a line a seed."""
    figures = []
    for key, title in _PROGRESS.items():
        curves = {
            f"seed {seed}": [(record["step"], record[key]) for record in records if record.get(key) is not None]
            for seed, records in progress.items()
        }
        if any(curves.values()):
            told = {name: points for name, points in curves.items() if points}
            figures.append({"title": title, "chart": charts.line_chart(told, "optimiser step", f"{title} by step")})
    return figures


def _samples(samples: Sequence[Sample]) -> Row:
    """The samples of the first seed, a row a class and a column an epoch; of many epochs as many, the last among them.

    Returns seed, epochs, rows of name and images (bytes or None by epoch), and how many of each are left out.
    """
    if not samples:
        return {"rows": [], "epochs": [], "seed": None, "more_seeds": 0, "more_epochs": 0}
    seed = samples[0].seed
    mine = {(one.class_name, one.epoch): one.image for one in samples if one.seed == seed}
    every = sorted({epoch for _, epoch in mine})
    stride = -(-len(every) // MAX_EPOCHS)
    epochs = every[::-1][::stride][::-1]
    names = list(dict.fromkeys(name for name, _ in mine))[:MAX_SAMPLES]
    rows = [{"name": name, "images": [mine.get((name, epoch)) for epoch in epochs]} for name in names]
    more = {"more_seeds": len({one.seed for one in samples}) - 1, "more_epochs": len(every) - len(epochs)}
    return {"rows": rows, "epochs": epochs, "seed": seed} | more


def _rejected(table: pa.Table, images: Mapping[str, bytes]) -> list[Row]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in table.sort_by([("stage", "ascending"), ("reason", "ascending"), ("image_id", "ascending")]).to_pylist():
        groups.setdefault((row["stage"], row["reason"]), []).append(row | {"image": images.get(row["image_id"])})
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
