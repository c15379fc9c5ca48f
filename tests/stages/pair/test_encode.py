"""Tests of encoding: latents and moments depend on the image, its id and the seed only."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlcp_ray import images, schemas
from vlcp_ray.models import stable_diffusion
from vlcp_ray.stages.pair import Encode, pairs_schema
from vlcp_ray.stages.pair.encode import EncodeRows

SETTINGS = Encode(resolution=32, train_resolution=32)
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
def encode_rows(tiny_stable_diffusion: str) -> EncodeRows:
    return EncodeRows(SETTINGS, tiny_stable_diffusion, batch_size=4)


def values(table: pa.Table, name: str) -> np.ndarray:
    return schemas.tensors(table[name]).astype(np.float32)


def test_encode_rows_columns_conform_to_pairs(encode_rows: EncodeRows) -> None:
    result = encode_rows(rows([(32, 32), (40, 30), (20, 50)]))
    assert "image" not in result.column_names
    pairs = schemas.conform(result, pairs_schema((4, 4, 4), (8, 4, 4)))
    assert pairs.num_rows == 3


def test_encode_rows_in_other_batches_gives_same_latents(encode_rows: EncodeRows, tiny_stable_diffusion: str) -> None:
    table = rows([(32, 32), (40, 30), (20, 50), (64, 64), (32, 32)])
    together = encode_rows(table)
    alone = EncodeRows(SETTINGS, tiny_stable_diffusion, batch_size=1)
    separate = pa.concat_tables([alone(table.slice(row, 1)) for row in reversed(range(5))])
    for name in ("latent", "train_moments"):
        np.testing.assert_allclose(values(together, name), values(separate, name)[::-1], atol=TOLERANCE)


def test_encode_rows_square_image_reuses_moments_of_crop(encode_rows: EncodeRows, tiny_stable_diffusion: str) -> None:
    table = rows([(32, 32), (48, 48)])
    separate = EncodeRows(Encode(resolution=32, train_resolution=64), tiny_stable_diffusion, 4)(table)
    np.testing.assert_allclose(values(encode_rows(table), "latent"), values(separate, "latent"), atol=TOLERANCE)
    assert values(separate, "train_moments").shape == (2, 2, 8, 8, 8)


def test_encode_rows_without_flip_gives_same_plain_views(encode_rows: EncodeRows, tiny_stable_diffusion: str) -> None:
    table = rows([(32, 32), (40, 30), (20, 50)])
    plain = EncodeRows(SETTINGS, tiny_stable_diffusion, batch_size=4, flip=False)(table)
    both = encode_rows(table)
    schemas.conform(plain, pairs_schema((4, 4, 4), (8, 4, 4), views=1))
    np.testing.assert_array_equal(values(plain, "latent"), values(both, "latent"))
    np.testing.assert_array_equal(values(plain, "train_moments"), values(both, "train_moments")[:, :1])


def test_encode_rows_oblong_image_has_crop_and_square_views(encode_rows: EncodeRows) -> None:
    table = rows([(48, 32)])
    image = images.decode(table["image"][0].as_py())
    crop = images.center_crop(image, 32)
    plain, flipped, square = (
        stable_diffusion.encode(encode_rows.vae, view[None].copy())
        for view in (crop, crop[:, ::-1], images.square(image, 32))
    )
    result = encode_rows(table)
    moments = values(result, "train_moments")[0]
    np.testing.assert_allclose(moments, torch.cat([plain, flipped]).numpy(), atol=TOLERANCE)
    latent, (mean, logvar) = values(result, "latent")[0], square[0].numpy().reshape(2, 4, 4, 4)
    assert np.abs(latent / 0.5 - mean).max() < 6 * np.exp(0.5 * logvar).max()
    assert not np.allclose(mean, moments[0, :4], atol=0.05)  # the two views differ


def test_encode_rows_flipped_moments_are_of_mirrored_image(encode_rows: EncodeRows) -> None:
    table = rows([(32, 32)])
    mirrored = np.asarray(images.decode(table["image"][0].as_py()))[:, ::-1]
    mirror = table.set_column(3, "image", pa.array([images.encode_png(np.ascontiguousarray(mirrored))], pa.binary()))
    moments, other = values(encode_rows(table), "train_moments")[0], values(encode_rows(mirror), "train_moments")[0]
    np.testing.assert_allclose(moments, other[::-1], atol=TOLERANCE)


def test_encode_rows_sample_depends_on_seed_and_image_id(encode_rows: EncodeRows, tiny_stable_diffusion: str) -> None:
    table = rows([(32, 32)])
    again, renamed = encode_rows(table), encode_rows(table.set_column(0, "image_id", pa.array(["other"])))
    reseeded = EncodeRows(SETTINGS.model_copy(update={"seed": 1}), tiny_stable_diffusion, 4)(table)
    assert np.array_equal(values(encode_rows(table), "latent"), values(again, "latent"))
    for other in (renamed, reseeded):
        assert not np.allclose(values(again, "latent"), values(other, "latent"), atol=0.05)
        np.testing.assert_allclose(values(again, "train_moments"), values(other, "train_moments"), atol=TOLERANCE)


def test_encode_rows_rejected_rows_have_zeros(encode_rows: EncodeRows) -> None:
    table = rows([(32, 32), (32, 32), (32, 32)])
    table = table.set_column(3, "image", pa.array([b"no image", table["image"][1].as_py(), b""], pa.binary()))
    table = schemas.reject(table, {2: ("empty_caption", "no word")})
    result = encode_rows(table)
    assert result["reason"].to_pylist() == ["undecodable", "", "empty_caption"]
    assert result["detail"].to_pylist()[2] == "no word"
    assert not values(result, "latent")[[0, 2]].any()
    assert values(result, "latent")[1].any()


@pytest.mark.parametrize("count", [0, 1])
def test_encode_rows_without_a_good_row_conforms(encode_rows: EncodeRows, count: int) -> None:
    result = encode_rows(rows([(8, 8)]).slice(0, count).set_column(3, "image", pa.array([b"x"] * count, pa.binary())))
    assert result.num_rows == count
    assert schemas.conform(result, pairs_schema((4, 4, 4), (8, 4, 4))).num_rows == count


def test_encode_rows_with_threads_gives_the_same(encode_rows: EncodeRows, tiny_stable_diffusion: str) -> None:
    table = rows([(32, 32), (40, 30), (20, 50), (64, 64), (32, 32)] * 3)
    table = table.set_column(3, "image", pa.array([*table["image"].to_pylist()[:-1], b"no image"], pa.binary()))
    assert EncodeRows(SETTINGS, tiny_stable_diffusion, 4, threads=3)(table).equals(encode_rows(table))


class LimitedVae:
    """A VAE on a device with memory for some images, and with numbers that are too large for half precision."""

    def __init__(self, vae: object, fits: int = 99, mends: bool = True) -> None:
        self.vae, self.fits, self.mends = vae, fits, mends
        self.half = torch.nn.Linear(1, 1).half()

    def __getattr__(self, name: str) -> object:
        return getattr(self.vae, name)

    @property
    def components(self) -> dict[str, object]:
        return {"vae": self.vae, "half": self.half}

    def encode(self, batch: torch.Tensor) -> object:
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        posterior = self.vae.encode(batch).latent_dist  # type: ignore[attr-defined]
        bad = batch.mean(dim=(1, 2, 3)) > 0.9  # of white images
        if self.half.weight.dtype == torch.float16 or not self.mends:
            posterior.mean[bad] = torch.inf
        return SimpleNamespace(latent_dist=posterior)


def with_white_rows(table: pa.Table, *white: int) -> pa.Table:
    contents = table["image"].to_pylist()
    for row in white:
        contents[row] = images.encode_png(np.full((32, 32, 3), 255, np.uint8))
    return table.set_column(3, "image", pa.array(contents, pa.binary()))


@pytest.mark.parametrize(("fits", "size"), [(4, 4), (3, 2), (1, 1)])
def test_encode_rows_without_memory_for_a_batch_halves_it(
    encode_rows: EncodeRows, tiny_stable_diffusion: str, fits: int, size: int
) -> None:
    table, small = (
        rows([(32, 32), (40, 30), (20, 50), (64, 64), (32, 32)]),
        EncodeRows(SETTINGS, tiny_stable_diffusion, 4),
    )
    small.vae = LimitedVae(small.vae, fits)
    result, expected = small(table), encode_rows(table)
    assert small.batches.size == size
    for name in ("latent", "train_moments"):
        np.testing.assert_allclose(values(result, name), values(expected, name), atol=TOLERANCE)


def test_encode_rows_without_memory_for_one_image_names_the_setting(tiny_stable_diffusion: str) -> None:
    small = EncodeRows(SETTINGS, tiny_stable_diffusion, 4)
    small.vae = LimitedVae(small.vae, 0)
    with pytest.raises(ValueError, match=r"encode.batch_size: not even one image fits .*num_gpus in the scale file"):
        small(rows([(32, 32)]))


@pytest.mark.parametrize("mends", [True, False])
def test_encode_rows_that_are_not_finite_are_done_in_float32_or_rejected(
    encode_rows: EncodeRows, tiny_stable_diffusion: str, mends: bool
) -> None:
    table = with_white_rows(rows([(32, 32)] * 5), 1, 4)
    large = EncodeRows(SETTINGS, tiny_stable_diffusion, 4)
    large.vae = LimitedVae(large.vae, mends=mends)
    result, expected = large(table), encode_rows(table)
    if mends:
        assert result["reason"].to_pylist() == [""] * 5
        for name in ("latent", "train_moments"):
            np.testing.assert_allclose(values(result, name), values(expected, name), atol=TOLERANCE)
        return
    assert result["reason"].to_pylist() == ["", "not_finite", "", "", "not_finite"]
    assert not values(result, "latent")[[1, 4]].any()
    assert not values(result, "train_moments")[[1, 4]].any()
    np.testing.assert_array_equal(values(result, "latent")[0], values(expected, "latent")[0])
