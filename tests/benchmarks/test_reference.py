"""Tests of the references: their results equal those of the stages."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.benchmarks import reference
from tests.image_sets import picture
from vlcp_ray.config import Encode, Generate, Prototype
from vlcp_ray.images import decode
from vlcp_ray.schemas import tensor_array, tensors
from vlcp_ray.stages.generate.img2img import Img2Img
from vlcp_ray.stages.pair.encode import EncodeRows
from vlcp_ray.stages.prototype.cluster import prototype


def test_prototypes_of_the_reference_equal_those_of_the_stage() -> None:
    random = np.random.default_rng(0)
    latents = (random.normal(size=(60, 4, 2, 2)) + 9 * (np.arange(60) % 3)[:, None, None, None]).astype(np.float16)
    captions = [
        f"the thing is {['red', 'round', 'blue'][i % 3]} and has number {chr(97 + i % 7) * 4}" for i in range(60)
    ]
    columns = {
        "image_id": [f"{i:03}" for i in range(60)],
        "label": pa.array([0] * 60, pa.int32()),
        "class_name": ["thing"] * 60,
        "caption": captions,
        "latent": tensor_array(latents),
    }
    settings = Prototype(contamination=0.1, n_init=2, matching="substring")
    expected = prototype(pa.table(columns), settings, [(0, 3)])[0, 3].prototypes
    lists = latents.reshape(60, -1).astype(float).tolist()
    centroids, texts = reference.prototypes(lists, captions, "thing", settings, 3, 0)
    flat = tensors(expected["latent"]).reshape(3, -1)
    order = [int(np.abs(flat - centroid).sum(axis=1).argmin()) for centroid in centroids]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(flat[order], centroids, atol=1e-3)
    assert [expected["text"][i].as_py() for i in order] == texts


def test_encoder_of_the_reference_samples_the_posterior_of_the_stage(tiny_stable_diffusion: str) -> None:
    files = [picture(seed, "PNG", (32, 32)) for seed in range(5)]
    latents = reference.Encoder(tiny_stable_diffusion, files, 32, 2)()
    rows = {"image_id": [str(i) for i in range(5)], "image": files}
    ours = EncodeRows(Encode(resolution=32, train_resolution=32), tiny_stable_diffusion, 2)(pa.table(rows))
    std = (
        np.exp(0.5 * tensors(ours["train_moments"])[:, 0, 4:].astype(np.float32)) * 0.5
    )  # times the scaling factor of the model
    difference = np.abs(np.array(latents).reshape(5, 4, 4, 4) - tensors(ours["latent"]).astype(np.float32))
    assert (difference < 12 * std).all()  # two samples of one posterior


def test_generator_of_the_reference_gives_the_image_of_the_stage(tiny_stable_diffusion: str) -> None:
    settings = Generate(strength=0.5, num_inference_steps=4, guidance_scale=3, negative_prompt="", image_size=32)
    latent = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    row = {"prototype_id": ["a"], "latent": tensor_array(latent), "text": ["abc"], "seed": [0]}
    row |= {"label": [0], "class_name": ["x"]}
    ours = Img2Img(settings, tiny_stable_diffusion, 1)(pa.table(row))
    theirs = reference.Generator(tiny_stable_diffusion, settings)(latent[0], "abc", ours["seed"][0].as_py())
    pixels, their_pixels = (np.asarray(decode(data)).astype(int) for data in (ours["image"][0].as_py(), theirs))
    assert np.abs(pixels - their_pixels).max() <= 1
    assert Image.open(io.BytesIO(theirs)).size == (32, 32)
