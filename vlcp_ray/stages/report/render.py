"""Render the report: one self-contained HTML page."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Any, Final

import jinja2
import markupsafe
import pyarrow as pa

from vlcp_ray.methods import METHODS, random_images, vlcp
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.schemas import REASONS
from vlcp_ray.stages.report import charts
from vlcp_ray.stages.report.contents import Report, Sample, TsnePlot
from vlcp_ray.stages.report.cost_section import costs, format_bytes, format_duration
from vlcp_ray.stages.report.coverage_section import coverage_rows
from vlcp_ray.stages.report.cross_architecture import matrices
from vlcp_ray.stages.report.images import preview, preview_side
from vlcp_ray.stages.report.published import other_split, published
from vlcp_ray.stages.report.score_section import evaluation_views, not_shown, other_budget_rows, score_rows
from vlcp_ray.stages.report.scores import budget_notes, failures, has_top5, headline, score_summary
from vlcp_ray.stages.report.sets_section import GROUP_CLASSES, class_groups, count_images, set_views

#: Rejected rows shown for each reason.
MAX_EXAMPLES: Final = 5
#: Epochs and classes shown of the samples generated during fine-tuning.
MAX_EPOCHS, MAX_SAMPLES = 8, 10
_METRICS: Final = {
    "loss": "Training loss, mean of the epoch",
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm, mean of the epoch",
}

Row = dict[str, Any]


def render(report: Report) -> str:
    """Render the page: an HTML document without scripts or external resources, the same for the same report."""
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_show_unseen,
    )
    folder = resources.files(__package__)
    environment.loader = jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    sets, samples = set_views(report), _samples(report.samples)
    images = count_images(sets) + sum(len(row["images"]) for row in samples["rows"]) + 2 * len(report.neighbours)
    side = preview_side(images)
    environment.filters.update(duration=format_duration, size=format_bytes, preview=partial(preview, side=side))
    return environment.get_template("report.html.j2").render(
        report=report,
        **_score_views(report),
        sets=sets,
        main_set=max(sets, key=lambda view: (view["ipc"], -view["seed"]), default=None),
        set_sizes=_set_sizes(report),
        tsne_plots=[_tsne_view(plot) for plot in report.tsne_plots],
        outliers_removed=any((plot.clusters < 0).any() for plot in report.tsne_plots),
        class_groups=class_groups(report.other_classes),
        group_classes=GROUP_CLASSES,
        coverage_rows=coverage_rows(report.coverage),
        finetuning_charts=_finetuning_charts(report.epoch_metrics),
        samples=samples,
        costs=costs(report.stages, report.estimates),
        rejected=_rejected(report.rejected, report.rejected_images),
        settings=_settings(report.settings),
    )


def _show_unseen(value: Any) -> Any:
    """Escape the unseen characters of text: a name of strangers cannot reorder the letters of the page."""
    is_text = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return printable(value, keep="\n\t") if is_text else value


def _score_views(report: Report) -> Row:
    summary = score_summary(report.scores)
    figures = published(report.title, report.class_lists, len(report.class_names))
    by_teacher = {name for name, method in METHODS.items() if "teacher" in method.inputs}
    return {
        "headline": _headline(report, summary),
        "score_rows": score_rows(summary, figures, report.coverage),
        "other_budget_rows": other_budget_rows(summary, figures),
        "budget_notes": budget_notes(summary),
        "evaluation_views": evaluation_views(report.scores, report.class_names, figures),
        "matrices": matrices(report.scores),
        "by_teacher": [name for name in dict.fromkeys(row["method"] for row in summary) if name in by_teacher],
        "not_shown": not_shown(summary),
        "failures": failures(summary),
        "has_top5": has_top5(summary),
        "has_ars": any(row["ars"] is not None for row in summary),
        "published": figures,
        "other_split": other_split(report.title, report.class_lists, report.splits),
        "method_names": {"ours": vlcp.METHOD.name, "baseline": random_images.METHOD.name},
    }


def _headline(report: Report, summary: Sequence[Row]) -> tuple[str, str]:
    classes = next((distilled.n_classes for distilled in report.sets), None)
    claim, basis = headline(summary, classes, report.splits.get("train"))
    if claim:
        return claim, basis
    if summary:
        return "Scores of the compared methods", ""
    images = sum(distilled.n_images for distilled in report.sets)
    return f"{images:,} distilled images, not evaluated yet" if images else "Nothing is distilled yet", ""


def _set_sizes(report: Report) -> list[Row]:
    """Compare each size of a distilled set with the train split: images, bytes, and the factors between them."""
    rows: dict[int, Row] = {}
    for distilled in report.sets:
        if distilled.ipc in rows or not report.splits.get("train"):
            continue
        smaller = report.train_bytes / distilled.n_bytes if report.train_bytes and distilled.n_bytes else None
        rows[distilled.ipc] = {
            "ipc": distilled.ipc,
            "images": distilled.n_images,
            "fewer": report.splits["train"] / max(1, distilled.n_images),
            "n_bytes": distilled.n_bytes,
            "smaller": smaller,
        }
    return [rows[ipc] for ipc in sorted(rows)]


def _tsne_view(plot: TsnePlot) -> Row:
    """Plot a class's t-SNE as an SVG: with outliers, before and after their removal side by side."""
    after = charts.Scatter("outliers removed", plot.points, plot.clusters, plot.centres)
    scatters = [after]
    if plot.centres_before is not None:
        inside = plot.clusters >= 0
        before = charts.Scatter("all images", plot.points, plot.clusters, plot.centres_before)
        scatters = [before, charts.Scatter(after.title, plot.points[inside], plot.clusters[inside], plot.centres)]
    chart = charts.scatter_chart(
        scatters, f"t-SNE of the latents of {plot.class_name} with the centres of its clusters"
    )
    return {"name": plot.class_name, "chart": chart, "shown": len(plot.points), "total": plot.total}


def _finetuning_charts(epoch_metrics: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Plot each metric that fine-tuning has recorded by epoch, a curve for each seed: title and SVG."""
    plotted = []
    for key, title in _METRICS.items():
        curves = {
            f"seed {seed}": [(record["step"], record[key]) for record in records if record.get(key) is not None]
            for seed, records in epoch_metrics.items()
        }
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            plotted.append({"title": title, "chart": charts.line_chart(curves, "optimiser step", f"{title} by step")})
    return plotted


def _samples(samples: Sequence[Sample]) -> Row:
    """Arrange the samples of the first seed: a row for each class, a column for each epoch, evenly spaced to the last.

    Returns seed, epochs, rows of name and images (bytes or None by epoch), and how many seeds and epochs are left out.
    """
    if not samples:
        return {"rows": [], "epochs": [], "seed": None, "more_seeds": 0, "more_epochs": 0}
    seed = samples[0].seed
    images = {(sample.class_name, sample.epoch): sample.image for sample in samples if sample.seed == seed}
    all_epochs = sorted({epoch for _, epoch in images})
    stride = -(-len(all_epochs) // MAX_EPOCHS)
    epochs = all_epochs[::-1][::stride][::-1]
    names = list(dict.fromkeys(name for name, _ in images))[:MAX_SAMPLES]
    rows = [{"name": name, "images": [images.get((name, epoch)) for epoch in epochs]} for name in names]
    more = {"more_seeds": len({s.seed for s in samples}) - 1, "more_epochs": len(all_epochs) - len(epochs)}
    return {"rows": rows, "epochs": epochs, "seed": seed} | more


def _rejected(table: pa.Table, images: Mapping[str, bytes]) -> list[Row]:
    """Group rejected rows by stage and reason, with a count and the first examples."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in table.sort_by([("stage", "ascending"), ("reason", "ascending"), ("image_id", "ascending")]).to_pylist():
        groups.setdefault((row["stage"], row["reason"]), []).append(row | {"image": images.get(row["image_id"])})
    return [
        {"stage": stage, "reason": reason, "meaning": REASONS.get(reason, ""), "count": len(rows)}
        | {"examples": rows[:MAX_EXAMPLES]}
        for (stage, reason), rows in groups.items()
    ]


def _settings(settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Format the settings by section; those that are in no section are of the section `job`."""
    sections: dict[str, dict[str, str]] = {"job": {}}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            sections[name] = {key: _value(inner) for key, inner in value.items()}
        else:
            sections["job"][name] = _value(value)
    return {name: values for name, values in sections.items() if values}


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, default=str, ensure_ascii=False)
