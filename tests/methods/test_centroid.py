"""Tests of the decoding of centroids."""

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray import images, schemas
from vlcp_ray.config import Job
from vlcp_ray.methods.centroid import Decode
from vlcp_ray.settings import build
from vlcp_ray.stages.prototype import prototypes_schema

N = 6
LEVELS = 1  # of 255: a batch of another size may round to the next level


def make_prototypes() -> pa.Table:
    latents = np.random.default_rng(0).normal(size=(N, 4, 4, 4)).astype(np.float32)
    columns = {
        "prototype_id": [f"0-{row}" for row in range(N)],
        "label": [0] * N,
        "class_name": ["zero"] * N,
        "cluster": list(range(N)),
        "size": [5] * N,
        "latent": schemas.tensor_array(latents),
        "text": ["a dog"] * N,
        "text_image_id": [f"img-{row}" for row in range(N)],
        "words": [["word"]] * N,
    }
    table = pa.table(columns, schema=prototypes_schema((4, 4, 4)))
    return table.append_column("seed", pa.array([7] * N, pa.int64()))


def pixels(table: pa.Table) -> np.ndarray:
    return np.stack([np.asarray(images.decode(data)).astype(int) for data in table["image"].to_pylist()])


@pytest.fixture(scope="module")
def job(tiny_stable_diffusion: str) -> Job:
    return build(Job, {"name": "x", "base_model": tiny_stable_diffusion, "generate": {"image_size": 24}}, "x")


def test_decode_writes_synthetic_without_text_or_seed(job: Job) -> None:
    table = Decode(job, batch_size=4)(make_prototypes())
    assert schemas.conform(table, schemas.SYNTHETIC).num_rows == N
    assert table["image_id"].to_pylist()[1] == "centroid-0-1"
    assert set(table["text"].to_pylist()) == {""}
    assert set(table["seed"].to_pylist()) == {0}
    assert pixels(table).shape == (N, 24, 24, 3)


def test_decode_with_other_batch_size_gives_same_images(job: Job) -> None:
    tables = [Decode(job, batch_size=batch_size)(make_prototypes()) for batch_size in (4, 1)]
    assert np.abs(pixels(tables[0]) - pixels(tables[1])).max() <= LEVELS
