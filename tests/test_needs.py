"""Whether what a plan says of images, disk and memory is what the settings lead to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlcp_ray import pipeline
from vlcp_ray.config import Job, load_job
from vlcp_ray.models.folders import folder
from vlcp_ray.needs import Needs, parameters
from vlcp_ray.needs import needs as needs_of
from vlcp_ray.settings import build

GIB = 2**30
JOBS = Path(__file__).parents[1] / "jobs"


def needs(job: Job) -> Needs:
    return needs_of(job, pipeline.graph(job))


def job(**settings: Any) -> Job:
    return build(Job, {"name": "x", **settings}, "x")


SET = {"expect": {"classes": 1000, "train": 1_281_167, "val": 50_000, "gib": 144.0}, "source": "s3://x/imagenet"}


def test_disk_is_the_sum_of_what_is_written() -> None:
    found = needs(job(ingest=SET, ipc=[10, 50], seeds=[0, 1, 2], generate={"image_size": 224}))
    latent, moments = 4 * 64 * 64 * 2, 2 * 8 * 64 * 64 * 2
    assert found.disk["pairs"] == pytest.approx(1_281_167 * (latent + moments + 600) / GIB)
    assert found.disk["models"] == pytest.approx(3 * (859_520_964 + 83_653_863 + 123_060_480) * 4 / GIB)
    assert found.disk["images"] == 144.0
    assert (found.sets, found.drawn) == (3 * 6, 3 * 3 * 60 * 1000)  # vlcp, random and centroid
    assert found.gpu["describe"] == pytest.approx(13.16, abs=0.01)


def test_smaller_training_views_need_less_disk() -> None:
    small, large = (needs(job(ingest=SET, encode={"train_resolution": size})).disk["pairs"] for size in (32, 512))
    assert small < 0.3 * large


def test_what_cannot_be_known_is_said() -> None:
    lines = list(needs(job(ingest={"source": "/data/mine"}, base_model="some/model")).lines())
    assert lines[0].endswith("known after ingest")
    assert "fine-tune unknown" in lines[1]
    assert "describe 13.2 GiB" in lines[1]


def test_parameters_of_a_folder_are_counted_from_its_headers(tmp_path: Path) -> None:
    save_file(
        {"a": np.zeros((2, 3), np.float16), "b": np.zeros((), np.float32)}, tmp_path / "1.safetensors", {"x": "y"}
    )
    save_file({"c": np.zeros(5, np.float32)}, tmp_path / "2.safetensors")
    assert parameters(str(tmp_path), "") == 12
    assert parameters(str(tmp_path / "none"), "") is None


def test_the_demos_own_models_are_counted() -> None:
    config = json.loads(Path(folder("demo/stable_diffusion"), "vae", "config.json").read_text())
    assert config["latent_channels"] == 4
    demo = needs(load_job(JOBS / "digits.toml"))
    assert demo.images is not None
    assert (demo.images.train, demo.images.val, demo.drawn) == (1297, 500, 180)
    assert 0 < sum(demo.disk.values()) < 0.1
    assert all(gib is not None and gib < 0.1 for gib in demo.gpu.values())


def test_a_job_without_drawn_sets_needs_no_model() -> None:
    found = needs(job(ingest=SET, compare={"methods": ["random", "herding"]}))
    assert not any("GPU" in line for line in found.lines())
    assert found.disk.keys() == {"images", "distilled"}


def test_needs_counts_the_sets_of_every_method() -> None:
    found = needs(load_job(JOBS / "digits-compare.toml"))
    assert (found.sets, found.drawn) == (90, 4_800)
    assert found.disk["distilled"] == pytest.approx(4_800 * 3 * 32**2 * 0.7 / GIB)


@pytest.mark.parametrize(
    "methods", [["d4m"], ["herding", "full"], ["vlcp", "vlcp-name", "base-text", "base-name"], ["rded", "k-center"]]
)
def test_needs_counts_no_set_of_a_method_left_out(methods: list[str]) -> None:
    found = needs(job(ingest=SET, ipc=[1, 10], seeds=[0, 1], compare={"methods": methods}))
    makes = [method for method in methods if method != "full"]
    assert (found.sets, found.drawn) == (4 * len(makes), 2 * 11 * 1000 * len(makes))
