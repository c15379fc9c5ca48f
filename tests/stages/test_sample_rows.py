"""Tests of the sample rows of measurements."""

import numpy as np

from vlcp_ray.config import Job
from vlcp_ray.images import decode
from vlcp_ray.models.pretrained import latent_shape
from vlcp_ray.schemas import tensors
from vlcp_ray.settings import build
from vlcp_ray.stages.sample_rows import Sample, sample_caption

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


def test_sample_images_of_other_sets_are_different_noise_of_one_class() -> None:
    rows = Sample(build(Job, EMBEDDED | {"ingest": {"source": "/data/photos"}}, "x")).images(3).to_pylist()
    assert [row["image_id"] for row in rows] == ["000000", "000001", "000002"]
    assert {(row["label"], row["class_name"], row["split"]) for row in rows} == {(0, "tench", "train")}
    assert len({row["image"] for row in rows}) == 3
    levels = np.unique(np.asarray(decode(rows[0]["image"])))
    assert levels.tolist() == list(range(256))


def test_sample_pairs_and_prototypes_have_ids_and_a_usual_caption() -> None:
    job = build(Job, EMBEDDED, "x")
    pairs, prototypes = Sample(job).pairs(2), Sample(job).prototypes(2)
    assert pairs.select(["image_id", "caption"]).to_pylist() == [
        {"image_id": image_id, "caption": sample_caption(job)} for image_id in ("000000", "000001")
    ]
    assert prototypes.drop_columns("latent").to_pylist() == [
        {"prototype_id": prototype_id, "seed": 0, "text": sample_caption(job), "class_name": "tench"}
        for prototype_id in ("0000-0000", "0000-0001")
    ]
    for table, name in ((pairs, "train_moments"), (prototypes, "latent")):
        values = tensors(table[name]).astype(np.float32)
        assert abs(values.mean()) < 0.2
        assert 0.8 < values.std() < 1.2
    np.testing.assert_array_equal(tensors(Sample(job).pairs(2)["train_moments"]), tensors(pairs["train_moments"]))


def test_sample_caption_has_32_words_for_digits_and_60_for_photos() -> None:
    photos = build(Job, EMBEDDED | {"ingest": {"source": "/data/photos"}}, "x")
    assert sample_caption(build(Job, EMBEDDED, "x")).split() == ["a", "thin", "upright", "shape"] * 8
    assert len(sample_caption(photos).split()) == 60
