"""Checks that published figures stand where they belong and nowhere else."""

from pathlib import Path

import pytest

from vlcp_ray.config import Job, load_job
from vlcp_ray.published import Published, published

JOBS = Path(__file__).parents[1] / "jobs"
SETS = ("imagenette", "imagewoof", "imageidc", "imagenet100", "imagenet1k", "cifar10", "cifar100", "tiny-imagenet")


def stated(job: Job, classes: int) -> list[Published]:
    return published(job.name, job.ingest.classes, classes)


@pytest.mark.parametrize("name", SETS)
def test_every_job_of_the_paper_has_its_own_figures(name: str) -> None:
    job = load_job(JOBS / f"{name}.toml")
    assert job.ingest.expect
    figures = stated(job, job.ingest.expect.classes)
    assert {one.protocol for one in figures} == set(job.evaluate.protocols)
    assert {one.network for one in figures} == set(job.evaluate.networks)
    assert set(job.ipc) & {one.ipc for one in figures}
    best = {(one.network, one.ipc): one.top1_best for one in figures if one.method == "vlcp"}
    assert all(one.top1_best < best[one.network, one.ipc] for one in figures if one.method == "random")
    assert stated(job, job.ingest.expect.classes - 1) == []  # a part of the set is another set


def test_a_figure_is_the_one_that_the_paper_states() -> None:
    figures = published("mine", ("imagenette",), 10)
    assert Published("minimax", "ResNetAP-10", 10, "vlcp", 64.8, 3.6) in figures
    assert Published("minimax", "ResNetAP-10", 50, "random", 76.1, None) in figures


def test_other_sets_have_none() -> None:
    assert stated(load_job(JOBS / "digits.toml"), 10) == []
    assert published("imagenette", ("n01440764", "n02102040"), 10) == []
