"""Whether a prototype's image depends on the prototype alone, and is written as a data set."""

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray import config, images, schemas
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.generate import Decode, Generate

SETTINGS = config.Generate(num_inference_steps=4, guidance_scale=3, image_size=24)
TEXTS = ["a dog", "b" * 90, "a cat", "c" * 160, "d" * 90, ""]
LEVELS = 1  # of 255: latents agree to 1e-5, and rounding to a level may tip


def prototypes() -> pa.Table:
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
    table = pa.table(columns, schema=schemas.prototypes_schema((4, 4, 4)))
    return table.append_column("seed", pa.array([7] * n, pa.int64()))


def pixels(table: pa.Table) -> np.ndarray:
    return np.stack([np.asarray(images.decode(data)).astype(int) for data in table["image"].to_pylist()])


@pytest.fixture(scope="module")
def generate(tiny_stable_diffusion: str) -> Generate:
    return Generate(SETTINGS, tiny_stable_diffusion, batch_size=4)


@pytest.fixture(scope="module")
def whole(generate: Generate) -> pa.Table:
    return generate(prototypes())


def test_a_distilled_set_is_a_data_set(whole: pa.Table) -> None:
    assert schemas.conform(whole, schemas.SYNTHETIC).num_rows == len(TEXTS)
    assert whole["cluster"].to_pylist() == list(range(len(TEXTS)))  # what the row carries besides stays
    assert set(whole["split"].to_pylist()) == {"train"}
    assert whole["image_id"].to_pylist()[1] == "synthetic-0-1"
    assert whole["text"].to_pylist() == TEXTS
    assert whole["seed"].to_pylist()[2] == seed_for(7, "generate", "0-2")
    assert pixels(whole).shape == (len(TEXTS), 24, 24, 3)


def test_batch_size_changes_nothing(whole: pa.Table, tiny_stable_diffusion: str) -> None:
    alone = Generate(SETTINGS, tiny_stable_diffusion, batch_size=1)(prototypes())
    assert np.abs(pixels(alone) - pixels(whole)).max() <= LEVELS


def test_order_and_neighbours_change_nothing(whole: pa.Table, generate: Generate) -> None:
    order = [5, 3, 1, 0]
    permuted = generate(prototypes().take(order))
    assert permuted["prototype_id"].to_pylist() == [f"0-{row}" for row in order]
    assert np.abs(pixels(permuted) - pixels(whole)[order]).max() <= LEVELS


def test_the_seed_of_the_set_changes_the_image(whole: pa.Table, generate: Generate) -> None:
    table = prototypes().slice(0, 1)
    other = generate(schemas.with_column(table, "seed", pa.array([8], pa.int64())))
    assert other["seed"][0] != whole["seed"][0]
    assert np.abs(pixels(other)[0] - pixels(whole)[0]).max() > LEVELS


def test_without_guidance(tiny_stable_diffusion: str) -> None:
    settings = SETTINGS.model_copy(update={"guidance_scale": 1.0})
    assert len(Generate(settings, tiny_stable_diffusion, 4)(prototypes().slice(0, 2))) == 2


def test_centroids_are_decoded_as_they_are(tiny_stable_diffusion: str) -> None:
    decode = Decode(SETTINGS, tiny_stable_diffusion, batch_size=4)
    table = decode(prototypes())
    assert schemas.conform(table, schemas.SYNTHETIC).num_rows == len(TEXTS)
    assert table["image_id"].to_pylist()[1] == "centroid-0-1"
    assert set(table["text"].to_pylist()) == {""}
    assert set(table["seed"].to_pylist()) == {0}
    assert pixels(table).shape == (len(TEXTS), 24, 24, 3)
    apart = Decode(SETTINGS, tiny_stable_diffusion, batch_size=1)(prototypes())
    assert np.abs(pixels(table) - pixels(apart)).max() <= LEVELS
