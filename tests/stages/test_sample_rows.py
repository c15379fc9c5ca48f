"""Tests of the sample rows of measurements."""

from vlcp_ray.config import Job
from vlcp_ray.images import decode
from vlcp_ray.models.pretrained import latent_shape
from vlcp_ray.schemas import tensors
from vlcp_ray.settings import build
from vlcp_ray.stages.sample_rows import Sample

EMBEDDED = {"name": "x", "base_model": "demo/stable_diffusion", "encode": {"resolution": 32, "train_resolution": 32}}


def test_sample_images_of_embedded_digits_repeat_with_unique_ids() -> None:
    table = Sample(build(Job, EMBEDDED, "x")).images(1300)
    assert len(set(table["image_id"].to_pylist())) == 1300
    assert table["image"][0] == table["image"][1297]
    assert set(table["split"].to_pylist()) == {"train"}


def test_sample_images_of_other_sets_have_a_photographs_size() -> None:
    table = Sample(build(Job, EMBEDDED | {"ingest": {"source": "/data/photos"}}, "x")).images(2)
    assert [decode(image).size for image in table["image"].to_pylist()] == [(500, 375)] * 2


def test_sample_pairs_and_prototypes_have_the_models_latent_shape() -> None:
    job = build(Job, EMBEDDED, "x")
    channels, height, width = latent_shape(job.base_model, 32)
    assert tensors(Sample(job).pairs(3)["train_moments"]).shape == (3, 2, 2 * channels, height, width)
    assert tensors(Sample(job).prototypes(3)["latent"]).shape == (3, channels, height, width)
