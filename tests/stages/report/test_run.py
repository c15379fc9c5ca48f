"""Tests of the stage report: it gathers the artifacts of a whole job into a page."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.small_job import JOB
from tests.stages.report import test_distilled_sets as tables
from tests.stages.report.small_report import png
from tests.stages.report.test_render import Page, sections
from tests.stages.report.test_scores import scores, trials
from vlcp_ray.config import Job, load_job
from vlcp_ray.engine.context import Context
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import REJECTED, SYNTHETIC, conform, tensor_array
from vlcp_ray.stages.pair import pairs_schema
from vlcp_ray.stages.report import COVERAGE, NEIGHBOURS
from vlcp_ray.stages.report.run import run
from vlcp_ray.store.artifact import Step, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]

METHODS = ("vlcp", "centroid", "random", "full")
GREY = {"vlcp": 1, "centroid": 2, "random": 3}  # of all images of a set


@pytest.fixture(scope="module")
def job() -> Job:
    return load_job(JOB, ["seeds=[0]", f"ipc=[{tables.IPC}]", f"compare.methods={list(METHODS)}"])


@pytest.fixture(scope="module")
def context(job: Job, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A store in which all artifacts of the job but its report are complete."""
    store = Store.at(str(tmp_path_factory.mktemp("root")))
    context = Context(job, Scale(prototype=Pool(num_workers=2)), store, command="vlcp-ray run x.toml")
    for step in graph(job)[:-1]:
        WRITERS[step.stage](context, step)
    return context


def write_ingest(context: Context, step: Step) -> None:
    rows = tables.images()
    context.artifact(step).write_table("images/0.parquet", rows)
    reject(context, step, "broken.jpg", "undecodable")
    facts = {"class_names": [f"class {label}" for label in range(tables.CLASSES)], "splits": {"train": len(rows)}}
    context.complete(step, rows_in=len(rows) + 1, rows=len(rows), rejected=1, seconds=1.0, **facts)


def write_pair(context: Context, step: Step) -> None:
    rows = tables.images()
    latents = np.random.default_rng(0).normal(size=(len(rows), 4, 1, 1)).astype(np.float16)
    columns = {name: rows[name] for name in ("image_id", "label", "class_name")}
    columns |= {"caption": ["A round digit."] * len(rows), "latent": tensor_array(latents)}
    columns["train_moments"] = tensor_array(np.zeros((len(rows), 1, 2, 1, 1), np.float16))
    table = conform(pa.table(columns), pairs_schema((4, 1, 1), (2, 1, 1), 1))
    context.artifact(step).write_table("pairs/0.parquet", table)
    reject(context, step, "0-00", "empty_caption")
    lengths = {"captions": len(rows), "too_long": 1, "encoder_tokens": 77}
    tokens = {"answers": len(rows), "longest": 9, "tokens": 5 * len(rows), "read_tokens": 15 * len(rows), "cut": 2}
    example = {"image_id": "0-07", "caption": "I'm sorry, no <digit>."}
    problems = {"refuses": {"captions": 1, "examples": [example]}, "repeats": {"captions": 0, "examples": []}}
    facts = {"caption_lengths": lengths, "caption_tokens": tokens, "caption_problems": problems}
    context.complete(step, rows_in=len(rows) + 1, rows=len(rows), rejected=1, seconds=2.0, **facts)


def reject(context: Context, step: Step, image_id: str, reason: str) -> None:
    row = {"image_id": image_id, "stage": step.stage, "reason": reason, "detail": "a test", "source": "a test"}
    context.artifact(step).write_table("rejected/0.parquet", pa.Table.from_pylist([row], schema=REJECTED))


def write_finetune(context: Context, step: Step) -> None:
    artifact = context.artifact(step)
    for epoch in (1, 2):
        metrics = {"epoch": epoch, "step": 10 * epoch, "images": 40 * epoch, "loss": 1 / epoch, "learning_rate": 1e-4}
        artifact.write_bytes(f"progress/epoch-{epoch:04d}.json", json.dumps(metrics).encode())
        artifact.write_bytes(f"validation/epoch-{epoch:04d}-01.png", png(epoch))
    context.complete(step, rows_in=40, rows=40, seconds=3.0, steps=20, images=80)


def write_prototype(context: Context, step: Step) -> None:
    context.artifact(step).write_table("prototypes/0.parquet", tables.prototypes())
    context.artifact(step).write_table("members/0.parquet", tables.members())
    count = tables.CLASSES * tables.IPC
    context.complete(step, rows_in=count, rows=count, seconds=4.0, members=len(tables.members()))


def write_set(context: Context, step: Step) -> None:
    rows = tables.synthetic(GREY[step.key["method"]])
    assert rows.schema.equals(SYNTHETIC)
    context.artifact(step).write_table("synthetic/0.parquet", rows)
    context.complete(step, rows_in=len(rows), rows=len(rows), seconds=5.0)


def write_evaluate(context: Context, step: Step) -> None:
    method = step.key["method"]
    value = {"vlcp": 0.8, "centroid": 0.6, "random": 0.5, "full": 0.9}[method]
    table = scores(trials(method, step.key.get("ipc", 0), (value,)))
    context.artifact(step).write_table("scores/0.parquet", table)
    context.complete(step, rows_in=1, rows=1, seconds=6.0)


WRITERS = {
    "ingest": write_ingest,
    "pair": write_pair,
    "finetune": write_finetune,
    "prototype": write_prototype,
    "generate": write_set,
    "select": write_set,
    "evaluate": write_evaluate,
}


@pytest.fixture(scope="module")
def page(context: Context, job: Job) -> Page:
    report = graph(job)[-1]
    run(context, [report])
    manifest = context.manifest(report)
    assert manifest["rows_in"] == manifest["rows"] == len(report.inputs)
    return Page((Path(context.artifact(report).path) / "index.html").read_text(encoding="utf-8"))


def test_run_gathers_all_sections(page: Page) -> None:
    assert sections(page) == ["data", "scores", "sets", "coverage", "finetuning", "cost", "rejected", "reproduce"]
    assert "2 distilled images of each of 4 classes reach 80.0" in page.text
    assert "vlcp-ray run x.toml" in page.text


def test_run_writes_coverage_and_neighbours_of_every_set(page: Page, context: Context, job: Job) -> None:
    artifact = context.artifact(graph(job)[-1])
    rows = artifact.table("coverage", COVERAGE).to_pylist()
    assert {(row["method"], row["label"], row["real"], row["synthetic"]) for row in rows} == {
        (method, label, tables.IMAGES_PER_CLASS, tables.IPC) for method in GREY for label in range(tables.CLASSES)
    }
    assert len(rows) == 3 * tables.CLASSES
    # Class 0 has all levels from 0 to 11: each image of a set is a copy of one of them, and of another class of none.
    assert {row["method"]: row["to_real"] for row in rows if row["label"] == 0} == dict.fromkeys(GREY, 0)
    assert all(row["to_real"] > 0 and row["covered"] == 0 for row in rows if row["label"] == 2)
    pairs = artifact.table("neighbours", NEIGHBOURS).to_pylist()
    assert len(pairs) == 3 * tables.CLASSES * tables.IPC
    nearest = {(row["method"], row["real_image_id"]) for row in pairs if row["label"] == 0}
    assert nearest == {(method, f"0-{grey:02}") for method, grey in GREY.items()}


def test_run_shows_the_nearest_real_image_of_synthetic_ones(page: Page) -> None:
    alts = [attributes["alt"] or "" for attributes in page.all("img")]
    shown = [alt for alt in alts if alt.startswith("nearest training image")]
    assert shown[:2] == ["nearest training image, 0-01"] * tables.IPC
    assert len(shown) == tables.CLASSES * tables.IPC


def test_run_compares_only_classes_that_are_not_compared(context: Context, job: Job, page: Page) -> None:
    """An interrupted report goes on with the classes that are left."""
    artifact = context.artifact(graph(job)[-1])
    rows = artifact.table("coverage", COVERAGE)
    for part in artifact.parts("coverage")[1:]:
        Path(part.path).unlink()
    kept = Path(artifact.parts("coverage")[0].path)
    modified = kept.stat().st_mtime_ns
    run(context, [graph(job)[-1]])
    assert kept.stat().st_mtime_ns == modified
    order = [(name, "ascending") for name in ("label", "method")]
    assert artifact.table("coverage", COVERAGE).sort_by(order).equals(rows.sort_by(order))


def test_run_shows_prototypes_beside_centroids_and_real_images(page: Page) -> None:
    alts = [attributes["alt"] for attributes in page.all("img")]
    count = tables.CLASSES * tables.IPC
    assert (alts.count("centroid"), alts.count("synthetic"), alts.count("nearest real")) == (count, count, 3 * count)
    assert alts.count("outlier of class 0") == len(tables.OUTLIERS)
    assert "none" not in {attributes.get("class") for attributes in page.all("div")}


def test_run_shows_dropped_words_and_tsne_of_every_class(page: Page) -> None:
    assert page.text.count("round 100 %") == tables.CLASSES
    assert len(page.all("g", "centres")) == 2 * tables.CLASSES  # before and after the removal of outliers
    assert [f"class {label}, 12 images" in page.text for label in range(tables.CLASSES)] == [True] * tables.CLASSES


def test_run_shows_the_tokens_of_captions_and_those_that_look_wrong(page: Page) -> None:
    assert (
        "answers of 5 tokens on average and 9 at most; image and prompt are 15 tokens, 75% of all; 2 were" in page.text
    )
    assert "captions refuses to describe the image" in page.text
    assert "0-07: I'm sorry, no <digit>." in page.text


def test_run_shows_how_many_captions_are_too_long(page: Page) -> None:
    assert "1 of 48 captions is longer than the 77 tokens that the text encoder reads at once" in page.text


def test_run_shows_images_of_rows_rejected_after_ingest(page: Page) -> None:
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert "0-00" in alts
    assert "broken.jpg" not in alts
    assert "broken.jpg" in page.text


def test_run_shows_metrics_and_samples_of_finetuning(page: Page) -> None:
    assert "Training loss, mean of the epoch" in page.text
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert {"class 1, epoch 1", "class 1, epoch 2"} <= set(alts)


def test_run_shows_the_cpu_seconds_of_all_that_a_set_is_made_from(page: Page) -> None:
    """PAIRS take 2 s on two workers, the model 3 s, prototypes 4 s on two workers, the set 5 s."""
    section = page.text[page.text.index("CPU-seconds") :]
    for method, seconds in (("vlcp", 2 * 2 + 3 + 4 * 2 + 5), ("centroid", 2 * 2 + 4 * 2 + 5), ("random", 5)):
        assert re.search(rf"2{method}[\d.]+0\.0{seconds}\.0", section)
    assert re.search(r"allfull\D", section)


def test_run_shows_unit_and_counts_of_every_stage(page: Page) -> None:
    for text in ("80 images", "48 images", "4 trials", "members 48", "steps 20, images 80", "train 48"):
        assert text in page.text
