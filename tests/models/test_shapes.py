"""Whether shapes follow from the configuration alone."""

import json
from pathlib import Path

import pytest

from vlcp_ray.models.shapes import latent_shape, scaling_factor


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "vae").mkdir()
    config = {"block_out_channels": [8, 8, 8, 8], "latent_channels": 4, "scaling_factor": 0.5}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_latents_are_an_eighth_of_the_image(folder: str) -> None:
    assert latent_shape(folder, 32) == (4, 4, 4)
    assert latent_shape(folder, 512) == (4, 64, 64)


def test_the_scaling_factor_may_be_left_out(folder: str) -> None:
    assert scaling_factor(folder) == 0.5
    (Path(folder) / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8], "latent_channels": 4}))
    assert scaling_factor(folder) == 0.18215


def test_the_packaged_model_has_its_shapes() -> None:
    assert latent_shape("demo/stable_diffusion", 32) == (4, 4, 4)
