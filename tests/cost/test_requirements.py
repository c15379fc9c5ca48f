"""Tests of the requirements of a job: images, disk and GPU memory that follow from its settings."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vlcp_ray import pipeline
from vlcp_ray.config import Job, load_job
from vlcp_ray.cost.requirements import Requirements, expected_images, format_gib, requirements
from vlcp_ray.models.pretrained import folder
from vlcp_ray.scale import Scale, derive
from vlcp_ray.settings import build
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.stages.stage import Memory

GIB = 2**30
JOBS = Path(__file__).parents[2] / "jobs"
IMAGENET: dict[str, Any] = {
    "expect": {"classes": 1000, "train": 1_281_167, "val": 50_000, "gib": 144.0},
    "source": "s3://x/imagenet",
}


def requirements_of(job: Job, scale: Scale | None = None) -> Requirements:
    return requirements(job, pipeline.graph(job), scale or derive(8, 1, 24))


def make_job(**settings: Any) -> Job:
    return build(Job, {"name": "x", **settings}, "x")


def test_requirements_disk_is_the_sum_of_what_is_written() -> None:
    needed = requirements_of(make_job(ingest=IMAGENET, ipc=[10, 50], seeds=[0, 1, 2], generate={"image_size": 224}))
    latent, moments = 4 * 64 * 64 * 2, 2 * 8 * 64 * 64 * 2
    assert needed.disk["pairs"] == pytest.approx(1_281_167 * (latent + moments + 600) / GIB)
    models, checkpoints = 3 * (859_520_964 + 83_653_863 + 123_060_480) * 4, 2 * 859_520_964 * 16
    assert needed.disk["models"] == pytest.approx((models + checkpoints) / GIB)
    assert needed.disk["images"] == 144.0
    assert (needed.sets, needed.distilled) == (3 * 6, 3 * 3 * 60 * 1000)  # vlcp, random and centroid


def test_requirements_count_the_checkpoints_of_seeds_that_are_trained_side_by_side() -> None:
    job = make_job(ingest=IMAGENET, seeds=[0, 1, 2])
    one, three = (requirements_of(job, derive(64, gpus, 24)).disk["models"] for gpus in (1, 3))
    assert three - one == pytest.approx(2 * 2 * 859_520_964 * 16 / GIB)


def test_requirements_with_smaller_training_views_need_less_disk() -> None:
    small, large = (
        requirements_of(make_job(ingest=IMAGENET, encode={"train_resolution": size})).disk["pairs"]
        for size in (32, 512)
    )
    assert small < 0.3 * large


def test_requirements_lines_name_what_is_unknown() -> None:
    lines = list(requirements_of(make_job(ingest={"source": "/data/mine"}, base_model="some/model")).lines())
    assert lines[0].endswith("known after ingest")
    assert "fine-tune unknown" in lines[1]
    assert "caption 15.7 GiB" in lines[1]


def test_requirements_of_the_demo_are_known_and_small() -> None:
    config = json.loads(Path(folder("demo/stable_diffusion"), "vae", "config.json").read_text())
    assert config["latent_channels"] == 4
    needed = requirements_of(load_job(JOBS / "digits.toml"))
    assert needed.images is not None
    assert (needed.images.train, needed.images.val, needed.distilled) == (1297, 500, 180)
    assert 0 < sum(needed.disk.values()) < 0.1
    assert all(need.least <= need.gib < 0.1 for need in needed.memory if need.use != "caption")


def test_requirements_without_a_gpu_have_the_memory_of_one_of_24_gib() -> None:
    job = make_job(ingest=IMAGENET)
    without, on_one = requirements_of(job, derive(8, 0)), requirements_of(job, derive(8, 1, 24))
    assert without.memory == on_one.memory
    assert without.gpu_gib == on_one.gpu_gib == 24
    assert list(without.lines())[-1].endswith("1.0 GiB more for CUDA on a GPU of 24 GiB")


def test_requirements_without_generated_sets_need_no_model() -> None:
    needed = requirements_of(make_job(ingest=IMAGENET, compare={"methods": ["random", "herding"]}))
    assert not any("GPU" in line for line in needed.lines())
    assert needed.disk.keys() == {"images", "distilled"}


def test_requirements_count_the_sets_of_every_method() -> None:
    needed = requirements_of(load_job(JOBS / "digits-compare.toml"))
    assert (needed.sets, needed.distilled) == (162, 8_640)
    assert needed.disk["distilled"] == pytest.approx(8_640 * 3 * 32**2 * 0.7 / GIB)


@pytest.mark.parametrize(
    "methods", [["d4m"], ["herding", "full"], ["vlcp", "vlcp-name", "base-text", "base-name"], ["rded", "k-center"]]
)
def test_requirements_count_no_set_of_a_method_left_out(methods: list[str]) -> None:
    needed = requirements_of(make_job(ingest=IMAGENET, ipc=[1, 10], seeds=[0, 1], compare={"methods": methods}))
    with_sets = [method for method in methods if method != "full"]
    assert (needed.sets, needed.distilled) == (4 * len(with_sets), 2 * 11 * 1000 * len(with_sets))


def test_format_gib_below_a_tenth_is_in_mib() -> None:
    assert format_gib(1234.56) == "1,234.6 GiB"
    assert format_gib(0.05) == "51.2 MiB"
    assert format_gib(0.1) == "0.1 GiB"


def need(use: str, gib: float) -> Memory:
    return Memory(use, "base_model", "generate", gib, gib, "")


def test_requirements_lines_have_counts_and_sums() -> None:
    needed = Requirements(
        Expect(train=1_281_167, val=50_000, classes=1000, gib=144.0),
        sets=6,
        distilled=12_000,
        disk={"images": 144.0, "pairs": 100.5},
        memory=[need("caption", 13.16), need("generate", math.nan)],
    )
    assert list(needed.lines()) == [
        "images      1,281,167 train + 50,000 val, 1,000 classes, 144.0 GiB",
        "distilled   12,000 images in 6 sets",
        "disk        244.5 GiB at the root: images 144.0 GiB, pairs 100.5 GiB",
        "GPU memory  caption 13.2 GiB, generate unknown; 1.0 GiB more for CUDA",
    ]


def test_requirements_of_an_uncounted_model_leave_out_its_disk() -> None:
    needed = requirements_of(make_job(ingest=IMAGENET, base_model="some/model"))
    assert needed.disk.keys() == {"images", "pairs", "distilled"}


def test_requirements_before_ingest_have_no_images_and_no_disk() -> None:
    needed = requirements_of(make_job(ingest={"source": "/data/mine"}, ipc=[1, 2], seeds=[0, 1, 2, 3]))
    assert (needed.images, needed.distilled, dict(needed.disk)) == (None, 0, {})
    assert needed.sets == 3 * 2 * 4  # vlcp, random and centroid


def test_expected_images_are_the_settings_or_the_embedded_digits() -> None:
    digits = expected_images(make_job())
    assert digits is not None
    assert (digits.train, digits.val, digits.classes) == (1297, 500, 10)
    assert digits.gib == pytest.approx((1297 + 500) * 900 / GIB)
    assert expected_images(make_job(ingest=IMAGENET)) == Expect(**IMAGENET["expect"])
    stated = {"expect": {"classes": 10, "train": 5, "val": 2, "gib": 1.0}}
    assert expected_images(make_job(ingest=stated)) == Expect(**stated["expect"])
    assert expected_images(make_job(ingest={"source": "/data/mine"})) is None
