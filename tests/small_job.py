"""A job over 40 train and 20 val images of four digits that runs every stage and is small enough for a test."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from vlcp_ray.config import Job, load_job
from vlcp_ray.demo import digits
from vlcp_ray.demo.train.properties import write_caption
from vlcp_ray.images import decode

JOB = Path(__file__).parents[1] / "jobs" / "digits.toml"
SETTINGS = (
    "ipc=[1,2]",
    "finetune.epochs=1",
    "prototype.contamination=0.05",
    "generate.num_inference_steps=6",
    "evaluate.width=8",
    "evaluate.epochs=3",
    "evaluate.full_epochs=1",
    "evaluate.repeats=2",
)


CLASSES = ("digit zero", "digit one", "digit two", "digit three")
PER_CLASS = {"train": 40, "val": 20}


def write_inputs(folder: Path) -> Path:
    """Write the image folder `images` and the table `captions.parquet`, whose captions are made from the pixels."""
    captions = {}
    for split, count in PER_CLASS.items():
        rows = list(digits.rows(split))
        for name in CLASSES:
            target = folder / "images" / split / name
            target.mkdir(parents=True)
            for number, row in enumerate([row for row in rows if row["class_name"] == name][:count]):
                (target / f"{number:03d}.png").write_bytes(row["image"])
                if split == "train":
                    pixels = np.asarray(decode(row["image"]))
                    captions[f"train/{name}/{number:03d}.png"] = write_caption(pixels, name, random.Random(0))
    table = pa.table({"image_id": list(captions), "caption": list(captions.values())})
    parquet.write_table(table, folder / "captions.parquet")
    return folder


def overrides(inputs: Path, scheme: str = "") -> list[str]:
    """Return the settings that the job changes, with the inputs as paths or, with a scheme, as URIs."""
    return [*SETTINGS, f"ingest.source={scheme}{inputs}/images", f"caption.source={scheme}{inputs}/captions.parquet"]


def arguments(root: Path, inputs: Path) -> list[str]:
    """Make the arguments of `vlcp-ray run`: the job, the root and the overrides."""
    return [str(JOB), "--root", str(root), *(part for text in overrides(inputs) for part in ("--set", text))]


def complete(root: Path, inputs: Path) -> None:
    """Run the job with one worker for each kind of work."""
    from vlcp_ray.cli import main
    from vlcp_ray.scale import Scale, pools

    scale = root.with_name("one.toml")
    pool = "num_workers = 1\nnum_cpus = 1\nbatch_size = 50\n"
    scale.write_text("".join(f"[{name}]\n{pool}" for name in pools(Scale())))
    assert main(["run", *arguments(root, inputs), "--scale", str(scale)]) == 0


def job(inputs: Path) -> Job:
    """Load the job with its overrides."""
    return load_job(JOB, overrides(inputs))
