"""Whether a row's latents depend on its image and its id alone."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlcp_ray import config, images, schemas
from vlcp_ray.models import diffusion
from vlcp_ray.stages.encode import Encode

SETTINGS = config.Encode(resolution=32, train_resolution=32)
TOLERANCE = 2e-3  # a float16 step at the size of these values; the VAE itself agrees to 1e-6


def rows(sizes: list[tuple[int, int]]) -> pa.Table:
    """One noise image for each (width, height)."""
    random = np.random.default_rng(0)
    files = [images.encode_png(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    n = len(files)
    return pa.table(
        {
            "image_id": [f"img-{row}" for row in range(n)],
            "label": pa.array([0] * n, pa.int32()),
            "class_name": ["zero"] * n,
            "image": pa.array(files, pa.binary()),
            "source": ["test"] * n,
            "caption": ["a thing"] * n,
            "reason": [""] * n,
            "detail": [""] * n,
        }
    )


@pytest.fixture(scope="module")
def encode(tiny_stable_diffusion: str) -> Encode:
    return Encode(SETTINGS, tiny_stable_diffusion, batch_size=4)


def values(table: pa.Table, name: str) -> np.ndarray:
    return schemas.tensors(table[name]).astype(np.float32)


def test_columns_fit_pairs(encode: Encode) -> None:
    result = encode(rows([(32, 32), (40, 30), (20, 50)]))
    assert "image" not in result.column_names
    pairs = schemas.conform(result, schemas.pairs_schema((4, 4, 4), (8, 4, 4)))
    assert pairs.num_rows == 3


def test_batch_size_and_neighbours_change_nothing(encode: Encode, tiny_stable_diffusion: str) -> None:
    table = rows([(32, 32), (40, 30), (20, 50), (64, 64), (32, 32)])
    together = encode(table)
    alone = Encode(SETTINGS, tiny_stable_diffusion, batch_size=1)
    apart = pa.concat_tables([alone(table.slice(row, 1)) for row in reversed(range(5))])
    for name in ("latent", "train_moments"):
        np.testing.assert_allclose(values(together, name), values(apart, name)[::-1], atol=TOLERANCE)


def test_a_square_image_is_encoded_once_and_the_same(encode: Encode, tiny_stable_diffusion: str) -> None:
    table = rows([(32, 32), (48, 48)])
    apart = Encode(config.Encode(resolution=32, train_resolution=64), tiny_stable_diffusion, 4)(table)
    np.testing.assert_allclose(values(encode(table), "latent"), values(apart, "latent"), atol=TOLERANCE)
    assert values(apart, "train_moments").shape == (2, 2, 8, 8, 8)


def test_without_mirrored_views_the_plain_ones_are_the_same(encode: Encode, tiny_stable_diffusion: str) -> None:
    table = rows([(32, 32), (40, 30), (20, 50)])
    plain = Encode(SETTINGS, tiny_stable_diffusion, batch_size=4, flip=False)(table)
    both = encode(table)
    schemas.conform(plain, schemas.pairs_schema((4, 4, 4), (8, 4, 4), views=1))
    np.testing.assert_array_equal(values(plain, "latent"), values(both, "latent"))
    np.testing.assert_array_equal(values(plain, "train_moments"), values(both, "train_moments")[:, :1])


def test_views_of_an_oblong_image(encode: Encode) -> None:
    table = rows([(48, 32)])
    image = images.decode(table["image"][0].as_py())
    crop = images.center_crop(image, 32)
    plain, flipped, square = (
        diffusion.encode(encode.vae, images.stack([view])) for view in (crop, crop[:, ::-1], images.square(image, 32))
    )
    result = encode(table)
    moments = values(result, "train_moments")[0]
    np.testing.assert_allclose(moments, torch.cat([plain, flipped]).numpy(), atol=TOLERANCE)
    latent, (mean, logvar) = values(result, "latent")[0], square[0].numpy().reshape(2, 4, 4, 4)
    assert np.abs(latent / 0.5 - mean).max() < 6 * np.exp(0.5 * logvar).max()
    assert not np.allclose(mean, moments[0, :4], atol=0.05)  # the two views are not the same picture


def test_flipped_moments_are_those_of_the_flipped_image(encode: Encode) -> None:
    table = rows([(32, 32)])
    mirrored = np.asarray(images.decode(table["image"][0].as_py()))[:, ::-1]
    twin = table.set_column(3, "image", pa.array([images.encode_png(np.ascontiguousarray(mirrored))], pa.binary()))
    moments, other = values(encode(table), "train_moments")[0], values(encode(twin), "train_moments")[0]
    np.testing.assert_allclose(moments, other[::-1], atol=TOLERANCE)


def test_the_sample_is_seeded_by_seed_and_image_id(encode: Encode, tiny_stable_diffusion: str) -> None:
    table = rows([(32, 32)])
    again, renamed = encode(table), encode(table.set_column(0, "image_id", pa.array(["other"])))
    reseeded = Encode(SETTINGS.model_copy(update={"seed": 1}), tiny_stable_diffusion, 4)(table)
    assert np.array_equal(values(encode(table), "latent"), values(again, "latent"))
    for other in (renamed, reseeded):
        assert not np.allclose(values(again, "latent"), values(other, "latent"), atol=0.05)
        np.testing.assert_allclose(values(again, "train_moments"), values(other, "train_moments"), atol=TOLERANCE)


def test_rejected_rows_pass(encode: Encode) -> None:
    table = rows([(32, 32), (32, 32), (32, 32)])
    table = table.set_column(3, "image", pa.array([b"no image", table["image"][1].as_py(), b""], pa.binary()))
    table = schemas.reject(table, {2: ("empty_caption", "said nothing")})
    result = encode(table)
    assert result["reason"].to_pylist() == ["undecodable", "", "empty_caption"]
    assert result["detail"].to_pylist()[2] == "said nothing"
    assert not values(result, "latent")[[0, 2]].any()
    assert values(result, "latent")[1].any()


@pytest.mark.parametrize("count", [0, 1])
def test_tables_without_a_good_row(encode: Encode, count: int) -> None:
    result = encode(rows([(8, 8)]).slice(0, count).set_column(3, "image", pa.array([b"x"] * count, pa.binary())))
    assert result.num_rows == count
    assert schemas.conform(result, schemas.pairs_schema((4, 4, 4), (8, 4, 4))).num_rows == count
