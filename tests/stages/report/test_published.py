"""Tests of the published figures: which image sets they belong to."""

from pathlib import Path

import pytest

from vlcp_ray.config import Evaluate, Job, load_job
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.stages.report.published import Published, other_split, published

JOBS = Path(__file__).parents[3] / "jobs"
SETS = ("imagenette", "imagewoof", "imageidc", "imagenet100", "imagenet1k", "cifar10", "cifar100", "tiny-imagenet")


def figures_of(job: Job, classes: int) -> list[Published]:
    return published(job.name, job.ingest.classes, classes)


@pytest.mark.parametrize("name", SETS)
def test_published_has_figures_for_every_job_of_the_paper(name: str) -> None:
    job = load_job(JOBS / f"{name}.toml")
    assert job.ingest.expect
    figures = figures_of(job, job.ingest.expect.classes)
    assert {figure.protocol for figure in figures} == set(job.evaluate.protocols)
    assert {figure.network for figure in figures} == set(job.evaluate.networks)
    assert set(job.ipc) & {figure.ipc for figure in figures}
    best = {(figure.network, figure.ipc): figure.top1_best for figure in figures if figure.method == "vlcp"}
    assert all(f.top1_best < best[f.network, f.ipc] for f in figures if f.method == "random")
    assert figures_of(job, job.ingest.expect.classes - 1) == []  # the figures do not hold for a part of the set


def test_published_imagenette_equals_the_paper() -> None:
    figures = published("mine", ("imagenette",), 10)
    assert Published("minimax", "ResNetAP-10", 10, "vlcp", 64.8, 3.6, 2000, 64, "") in figures
    assert Published("minimax", "ResNetAP-10", 50, "random", 76.1, None, 1500, 64, "") in figures


@pytest.mark.parametrize("name", SETS)
def test_published_figures_have_the_budget_of_the_protocols_recipe(name: str) -> None:
    """Those of minimax; those of rded have its batch, and the epochs of the scripts that made them."""
    job = load_job(JOBS / f"{name}.toml")
    assert job.ingest.expect
    classes = job.ingest.expect.classes
    for figure in figures_of(job, classes):
        protocol = PROTOCOLS[figure.protocol]
        assert figure.batch_size == protocol.batch_size(job.evaluate, figure.ipc, classes, 10**6)
        assert bool(figure.teacher) == protocol.needs_teacher
        ours = 500 if figure.method.startswith("vlcp") else 300
        usual = protocol.epochs(Evaluate(), figure.ipc, classes)
        assert figure.epochs == (usual if figure.protocol == "minimax" else ours)


@pytest.mark.parametrize("name", SETS)
def test_other_split_is_told_of_another_number_of_images(name: str) -> None:
    job = load_job(JOBS / f"{name}.toml")
    assert job.ingest.expect
    train, val = job.ingest.expect.train, job.ingest.expect.val
    assert other_split(job.name, job.ingest.classes, {"train": train, "val": val}) == ""
    assert other_split(job.name, job.ingest.classes, {"train": train - train // 50, "val": val}) == ""
    assert other_split(job.name, job.ingest.classes, {}) == ""
    for splits in ({"train": train * 9 // 10, "val": val}, {"train": train, "val": 2 * val}, {"train": train}):
        assert f"They are of {train:,} train and {val:,} val" in other_split(job.name, job.ingest.classes, splits)


def test_other_split_of_fast_ais_archive_is_told() -> None:
    text = other_split("mine", ("imagenette",), {"train": 9469, "val": 3925})
    assert "this job has 9,469 and 3,925, so that its scores cannot be compared with them" in text
    assert other_split("digits", (), {"train": 1297, "val": 500}) == ""


def test_published_of_other_image_sets_is_empty() -> None:
    assert figures_of(load_job(JOBS / "digits.toml"), 10) == []
    assert published("imagenette", ("n01440764", "n02102040"), 10) == []
