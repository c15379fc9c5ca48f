"""Whether the references do the same work: what they make is what the stages make."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.benchmarks import reference
from tests.image_sets import picture
from vlcp_ray.config import Encode, Generate, Prototype
from vlcp_ray.images import decode
from vlcp_ray.schemas import tensor_array, tensors
from vlcp_ray.stages import encode, generate
from vlcp_ray.stages.prototype import prototype


def test_prototypes_of_lists_are_those_of_the_stage() -> None:
    random = np.random.default_rng(0)
    latents = (random.normal(size=(60, 4, 2, 2)) + 9 * (np.arange(60) % 3)[:, None, None, None]).astype(np.float16)
    said = [f"the thing is {['red', 'round', 'blue'][i % 3]} and has number {chr(97 + i % 7) * 4}" for i in range(60)]
    columns = {
        "image_id": [f"{i:03}" for i in range(60)],
        "label": pa.array([0] * 60, pa.int32()),
        "class_name": ["thing"] * 60,
        "caption": said,
        "latent": tensor_array(latents),
    }
    settings = Prototype(contamination=0.1, n_init=2, matching="substring")
    made, _ = prototype(pa.table(columns), settings, [(0, 3)])[0, 3]
    lists = latents.reshape(60, -1).astype(float).tolist()
    centroids, texts = reference.prototypes(lists, said, "thing", settings, 3, 0)
    flat = tensors(made["latent"]).reshape(3, -1)
    order = [int(np.abs(flat - centroid).sum(axis=1).argmin()) for centroid in centroids]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(flat[order], centroids, atol=1e-3)
    assert [made["text"][i].as_py() for i in order] == texts


def test_latents_as_lists_are_those_of_the_stage(tiny_stable_diffusion: str) -> None:
    files = [picture(seed, "PNG", (32, 32)) for seed in range(5)]
    made = reference.Encoder(tiny_stable_diffusion, files, 32, 2)()
    rows = {"image_id": [str(i) for i in range(5)], "image": files}
    ours = encode.Encode(Encode(resolution=32, train_resolution=32), tiny_stable_diffusion, 2)(pa.table(rows))
    spread = np.exp(0.5 * tensors(ours["train_moments"])[:, 0, 4:].astype(np.float32)) * 0.5  # times the scaling
    difference = np.abs(np.array(made).reshape(5, 4, 4, 4) - tensors(ours["latent"]).astype(np.float32))
    assert (difference < 12 * spread).all()  # two draws from one posterior


def test_an_image_drawn_alone_is_the_stage_s(tiny_stable_diffusion: str) -> None:
    settings = Generate(strength=0.5, num_inference_steps=4, guidance_scale=3, negative_prompt="", image_size=32)
    latent = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    row = {"prototype_id": ["a"], "latent": tensor_array(latent), "text": ["abc"], "seed": [0]}
    row |= {"label": [0], "class_name": ["x"]}
    ours = generate.Generate(settings, tiny_stable_diffusion, 1)(pa.table(row))
    theirs = reference.Drawer(tiny_stable_diffusion, settings)(latent[0], "abc", ours["seed"][0].as_py())
    one, two = (np.asarray(decode(data)).astype(int) for data in (ours["image"][0].as_py(), theirs))
    assert np.abs(one - two).max() <= 1
    assert Image.open(io.BytesIO(theirs)).size == (32, 32)
