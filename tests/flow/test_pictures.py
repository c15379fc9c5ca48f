"""Checks what workers count and make for the report, on real tables of a store."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.small_report import synthetic
from vlcp_ray import config
from vlcp_ray.flow.pictures import MAX_POINTS, image_bytes, planes, thumbnails
from vlcp_ray.images import encode_png
from vlcp_ray.scale import Pool
from vlcp_ray.schemas import tensor_array
from vlcp_ray.stages.prototype import prototype
from vlcp_ray.store import Artifact, Step, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]


def artifact(root: Path, name: str) -> Artifact:
    return Store.at(str(root)).artifact(Step(name, 1, {}))


def test_bytes_are_those_of_the_split_and_thumbnails_those_of_the_ids(tmp_path: Path) -> None:
    made = artifact(tmp_path, "generate")
    image = encode_png(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))
    table = synthetic(300, 2, image)
    made.write_table("synthetic/a.parquet", table.slice(0, 400))
    made.write_table("synthetic/b.parquet", table.slice(400))
    assert image_bytes(made, "synthetic", "train") == 600 * len(image)
    assert image_bytes(made, "synthetic", "val") == 0
    small = thumbnails(made, ["7-0", "299-1"]).sort_by("label")
    assert small["label"].to_pylist() == [7, 299]
    assert small["class_name"][0].as_py() == "class <7>"
    assert Image.open(io.BytesIO(small["image"][0].as_py())).size == (48, 48)


def test_a_plane_holds_the_class_its_outliers_and_its_centres(tmp_path: Path) -> None:
    random, count = np.random.default_rng(0), MAX_POINTS + 60
    pairs, prototypes = artifact(tmp_path, "pair"), artifact(tmp_path, "prototype")
    settings = config.Prototype(contamination=0.05, n_init=1)
    for label in (0, 1):
        rows = pa.table(
            {
                "image_id": [f"{label}-{i:04}" for i in random.permutation(count)],
                "label": pa.array([label] * count, pa.int32()),
                "class_name": [f"class {label}"] * count,
                "caption": ["a round digit"] * count,
                "latent": tensor_array(random.normal(size=(count, 4, 2, 2)).astype(np.float16)),
            }
        )
        pairs.write_table(f"pairs/{label}.parquet", rows)
        found, members = prototype(rows, settings, [(0, 3)])[0, 3]
        prototypes.write_table(f"prototypes/{label}.parquet", found)
        prototypes.write_table(f"members/{label}.parquet", members)
    first, second = planes(pairs, prototypes, [1, 0], 1, 0, Pool(num_workers=2))
    assert (first.class_name, second.class_name) == ("class 1", "class 0")
    assert (first.total, len(first.centres)) == (count, 3)
    assert int((first.clusters < 0).sum()) == round(0.05 * count)
    assert first.centres_before is not None
    assert MAX_POINTS <= len(first.points) == len(first.clusters) < count
    again = planes(pairs, prototypes, [1], 1, 0, Pool())[0]
    assert again.points == pytest.approx(first.points)
