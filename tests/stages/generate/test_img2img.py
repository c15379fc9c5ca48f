"""Tests of the generation of images from prototypes."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlcp_ray import images, schemas
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.generate import Generate
from vlcp_ray.stages.generate.img2img import Img2Img
from vlcp_ray.stages.prototype import prototypes_schema

SETTINGS = Generate(num_inference_steps=4, guidance_scale=3, image_size=24)
TEXTS = ["a dog", "b" * 90, "a cat", "c" * 160, "d" * 90, ""]
LEVELS = 1  # of 255: latents agree to 1e-5, which may round to the next level


def make_prototypes() -> pa.Table:
    n = len(TEXTS)
    latents = np.random.default_rng(0).normal(size=(n, 4, 4, 4)).astype(np.float32)
    columns = {
        "prototype_id": [f"0-{row}" for row in range(n)],
        "label": [0] * n,
        "class_name": ["zero"] * n,
        "cluster": list(range(n)),
        "size": [5] * n,
        "latent": schemas.tensor_array(latents),
        "text": TEXTS,
        "text_image_id": [f"img-{row}" for row in range(n)],
        "words": [["word"]] * n,
    }
    table = pa.table(columns, schema=prototypes_schema((4, 4, 4)))
    return table.append_column("seed", pa.array([7] * n, pa.int64()))


def pixels(table: pa.Table) -> np.ndarray:
    return np.stack([np.asarray(images.decode(data)).astype(int) for data in table["image"].to_pylist()])


@pytest.fixture(scope="module")
def img2img(tiny_stable_diffusion: str) -> Img2Img:
    return Img2Img(SETTINGS, tiny_stable_diffusion, batch_size=4)


@pytest.fixture(scope="module")
def synthetic(img2img: Img2Img) -> pa.Table:
    return img2img(make_prototypes())


def test_img2img_output_conforms_to_synthetic(synthetic: pa.Table) -> None:
    assert schemas.conform(synthetic, schemas.SYNTHETIC).num_rows == len(TEXTS)
    assert synthetic["cluster"].to_pylist() == list(range(len(TEXTS)))  # other columns are kept
    assert set(synthetic["split"].to_pylist()) == {"train"}
    assert synthetic["image_id"].to_pylist()[1] == "synthetic-0-1"
    assert synthetic["text"].to_pylist() == TEXTS
    assert synthetic["seed"].to_pylist()[2] == seed_for(7, "generate", "0-2")
    assert pixels(synthetic).shape == (len(TEXTS), 24, 24, 3)


def test_img2img_with_other_batch_size_gives_same_images(synthetic: pa.Table, tiny_stable_diffusion: str) -> None:
    single = Img2Img(SETTINGS, tiny_stable_diffusion, batch_size=1)(make_prototypes())
    assert np.abs(pixels(single) - pixels(synthetic)).max() <= LEVELS


def test_img2img_of_permuted_subset_gives_same_images(synthetic: pa.Table, img2img: Img2Img) -> None:
    order = [5, 3, 1, 0]
    permuted = img2img(make_prototypes().take(order))
    assert permuted["prototype_id"].to_pylist() == [f"0-{row}" for row in order]
    assert np.abs(pixels(permuted) - pixels(synthetic)[order]).max() <= LEVELS


def test_img2img_with_other_seed_gives_other_image(synthetic: pa.Table, img2img: Img2Img) -> None:
    table = make_prototypes().slice(0, 1)
    other = img2img(schemas.with_column(table, "seed", pa.array([8], pa.int64())))
    assert other["seed"][0] != synthetic["seed"][0]
    assert np.abs(pixels(other)[0] - pixels(synthetic)[0]).max() > LEVELS


def test_img2img_with_guidance_scale_1_generates_images(tiny_stable_diffusion: str) -> None:
    settings = SETTINGS.model_copy(update={"guidance_scale": 1.0})
    assert len(Img2Img(settings, tiny_stable_diffusion, 4)(make_prototypes().slice(0, 2))) == 2


class Overflowing(torch.nn.Module):
    """A part of a pipeline whose numbers are too large for half precision, in which its `marker` is.

    Args:
        fits: images that its memory holds.
    """

    def __init__(self, part: torch.nn.Module, mends: bool = True, fits: int = 99) -> None:
        super().__init__()
        self.part, self.mends, self.fits = part, mends, fits
        self.marker = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16), requires_grad=False)

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.part, name)

    def decode(self, latents: torch.Tensor) -> object:
        if len(latents) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        decoded = self.part.decode(latents)
        if self.marker.dtype == torch.float16 or not self.mends:
            decoded.sample[latents[:, 0, 0, 0] > 0] = torch.nan
        return decoded


@pytest.mark.parametrize("mends", [True, False])
def test_img2img_of_pictures_that_are_not_finite_is_done_in_float32_or_rejected(
    synthetic: pa.Table, tiny_stable_diffusion: str, mends: bool
) -> None:
    overflowing = Img2Img(SETTINGS, tiny_stable_diffusion, batch_size=4)
    overflowing.pipeline.vae = Overflowing(overflowing.pipeline.vae, mends)
    table = overflowing(make_prototypes())
    bad = [row for row, reason in enumerate(table["reason"].to_pylist()) if reason]
    if mends:
        assert bad == []
        assert np.abs(pixels(table) - pixels(synthetic)).max() <= LEVELS
        return
    assert 0 < len(bad) < len(TEXTS)
    good = [row for row in range(len(TEXTS)) if row not in bad]
    assert np.abs(pixels(table)[good] - pixels(synthetic)[good]).max() <= LEVELS
    assert {table["reason"][row].as_py() for row in bad} == {"not_finite"}


def test_img2img_without_memory_for_a_batch_halves_it(synthetic: pa.Table, tiny_stable_diffusion: str) -> None:
    small = Img2Img(SETTINGS, tiny_stable_diffusion, batch_size=4)
    small.pipeline.vae = Overflowing(small.pipeline.vae, fits=2)
    small.pipeline.vae.marker.data = small.pipeline.vae.marker.data.float()
    assert np.abs(pixels(small(make_prototypes())) - pixels(synthetic)).max() <= LEVELS
    assert small.batches.size == 2
