"""Test of ingest, captioning by vLLM and prototypes on real photographs in WebDataset's tars, with exact counts."""

import dataclasses
from pathlib import Path

import pytest

from tests.check_data import SETS, arguments_for, check_prototypes
from tests.image_sets import SHARED
from vlcp_ray.cli import main
from vlcp_ray.config import load_job
from vlcp_ray.store.artifact import Store


@pytest.mark.faults  # a whole run; `make check-data` has all three
@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("default")
def test_run_of_the_imagenet_sample_has_exact_counts(tmp_path: Path) -> None:
    """As `make check-data`, but at 64 px instead of 512, and without the images: test_pipeline.py generates some."""
    if not (SHARED / "imagenet-sample").exists():
        pytest.skip(f"{SHARED / 'imagenet-sample'} does not exist")
    small = SETS["imagenet"].settings | {"encode.resolution": 64, "generate.image_size": 64}
    small |= {"compare.methods": '["base-text"]'}  # needs no fine-tuning
    real = dataclasses.replace(SETS["imagenet"], settings=small)
    arguments = arguments_for(real, tmp_path)
    overrides = [argument.removeprefix("--set=") for argument in arguments if argument.startswith("--set=")]
    assert main(["run", *arguments, "--to", "prototype"]) == 0
    check_prototypes(load_job(arguments[0], overrides), real, Store.at(str(tmp_path / "runs")))
