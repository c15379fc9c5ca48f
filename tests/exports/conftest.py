"""A job with one distilled set, its captions and its model, and a fixture that exports them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import save

from tests.small_job import JOB
from vlcp_ray.config import Job, load_job
from vlcp_ray.exports.job import Choice, export, open_target
from vlcp_ray.images import encode_png
from vlcp_ray.models.pretrained import folder
from vlcp_ray.pipeline import graph
from vlcp_ray.protocols.labelled_images import LabelledImages
from vlcp_ray.schemas import IMAGES, SYNTHETIC, conform, tensor_array
from vlcp_ray.stages.pair import pairs_schema
from vlcp_ray.stages.prototype import prototypes_schema
from vlcp_ray.stages.teach import WEIGHTS
from vlcp_ray.stages.teach.train import train_teacher
from vlcp_ray.store.artifact import Step, Store

NAMES = ["cat", "dog", "a/b"]
IPC = 4
CLUSTERS = [f"{number:04d}" for number in range(IPC)]
PIXELS = np.random.default_rng(0).integers(0, 256, (len(NAMES), IPC, 8, 8, 3), dtype=np.uint8)
Export = Callable[..., tuple[Path, str]]


def synthetic() -> pa.Table:
    rows = [
        {
            "image_id": f"synthetic-{label:04d}-{cluster}",
            "label": label,
            "class_name": NAMES[label],
            "split": "train",
            "image": encode_png(PIXELS[label, int(cluster)]),
            "prototype_id": f"{label:04d}-{cluster}",
            "text": f"a {NAMES[label]}, number {cluster}",
            "seed": label,
        }
        for label in range(len(NAMES))
        for cluster in CLUSTERS
    ]
    return conform(pa.Table.from_pylist(rows), SYNTHETIC)


def prototypes() -> pa.Table:
    rows = synthetic()
    columns = {name: rows[name] for name in ("prototype_id", "label", "class_name", "text")}
    columns["cluster"] = [int(name[-4:]) for name in rows["prototype_id"].to_pylist()]
    columns |= {"size": [5] * len(rows), "latent": tensor_array(np.zeros((len(rows), 1, 1, 1), np.float32))}
    columns |= {"text_image_id": ["x"] * len(rows), "words": [["w"]] * len(rows)}
    return conform(pa.table(columns), prototypes_schema((1, 1, 1)))


def pairs() -> pa.Table:
    columns: dict[str, Any] = {
        "image_id": [f"train/{NAMES[row % 2]}/{row:02d}.jpg" for row in range(6)],
        "label": [row % 2 for row in range(6)],
        "class_name": [NAMES[row % 2] for row in range(6)],
        "caption": [f"Ein Tier, No. {row} é" for row in range(6)],
        "latent": tensor_array(np.zeros((6, 1, 1, 1), np.float16)),
        "train_moments": tensor_array(np.zeros((6, 2, 1, 1, 1), np.float16)),
    }
    return conform(pa.table(columns), pairs_schema((1, 1, 1), (1, 1, 1)))


def images_of(rows: pa.Table) -> pa.Table:
    """IMAGES of which PAIRS were made, in another order."""
    columns = {name: rows[name] for name in ("image_id", "label", "class_name")}
    columns |= {"split": ["train"] * len(rows), "image": [b""] * len(rows)}
    columns["source"] = [f"set/{image_id}" for image_id in rows["image_id"].to_pylist()]
    return conform(pa.table(columns), IMAGES).take(list(range(len(rows)))[::-1])


@pytest.fixture
def job() -> Job:
    return load_job(JOB, [f"ipc=[1,{IPC}]", "caption.source=/home/someone/captions.parquet"])


@pytest.fixture
def job_with_teacher() -> Job:
    teach = ["network='ConvNet-3'", "width=8", "input_size=8", "epochs=40", "batch_size=4"]
    settings = [f"ipc=[1,{IPC}]", "evaluate.protocols=['minimax','rded']", "evaluate.input_size=8"]
    return load_job(JOB, [*settings, *(f"teach.{setting}" for setting in teach)])


@pytest.fixture
def exported(job: Job, tmp_path: Path) -> Export:
    return exporter(job, tmp_path)


def exporter(job: Job, tmp_path: Path, model: str = "demo/stable_diffusion") -> Export:
    """Write the artifacts of a job, the distilled set in files out of order, and return a function that exports.

    Args:
        model: the folder that is the fine-tuned model.
    """
    store, steps = Store.at(str(tmp_path / "runs")), graph(job)

    def find(stage: str, **key: Any) -> Step:
        return next(
            s for s in steps if s.stage == stage and all(s.key.get(name) == value for name, value in key.items())
        )

    generated = find("generate", ipc=IPC)
    shuffled = synthetic().take(np.random.default_rng(1).permutation(len(synthetic())))
    for number in range(3):
        store.artifact(generated).write_table(f"synthetic/{number}.parquet", shuffled.slice(number * 4, 4))
    store.artifact(generated.inputs["prototypes"]).write_table("prototypes/0.parquet", prototypes())
    store.artifact(find("pair")).write_table("pairs/1.parquet", pairs().slice(0, 3))
    store.artifact(find("pair")).write_table("pairs/0.parquet", pairs().slice(3))
    store.artifact(find("finetune")).put_folder(Path(folder(model)), "model")
    store.artifact(find("ingest")).write_table("images/0.parquet", images_of(pairs()))
    images = {"class_names": NAMES, "splits": {"train": 6, "val": 2}, "rows": 8}
    store.artifact(find("ingest")).complete(images)
    store.artifact(generated).complete({"rows": 12})
    store.artifact(find("pair")).complete({})
    store.artifact(find("finetune")).complete({})

    for step in steps:
        if step.stage == "teach":
            train = LabelledImages(PIXELS.reshape(-1, 8, 8, 3).transpose(0, 3, 1, 2), np.repeat(np.arange(3), IPC))
            state = train_teacher(train, train, NAMES, job.teach, 0, "cpu").state
            store.artifact(step).write_bytes(WEIGHTS, save(state))
            store.artifact(step).complete({"top1": 0.75})

    def write(form: str, to: str = "", **options: Any) -> tuple[Path, str]:
        path = tmp_path / (to or form)
        target = open_target(to if "://" in to else str(path))
        return path, export(job, store, steps, Choice(form, **options), target)

    return write
