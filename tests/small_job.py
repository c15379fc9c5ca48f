"""A job over the embedded digits that runs every stage and is small enough for a test."""

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
OVERRIDES = (
    "ipc=[1,2]",
    "finetune.epochs=1",
    "prototype.contamination=0.05",
    "generate.num_inference_steps=6",
    "evaluate.width=8",
    "evaluate.epochs=3",
    "evaluate.full_epochs=1",
    "evaluate.repeats=2",
)


def write_captions(path: Path) -> Path:
    """Write captions of all train digits, made from measures of their pixels, as a table for `caption.source`."""
    rows = list(digits.rows("train"))
    captions = [write_caption(np.asarray(decode(row["image"])), row["class_name"], random.Random(0)) for row in rows]
    parquet.write_table(pa.table({"image_id": [row["image_id"] for row in rows], "caption": captions}), path)
    return path


def arguments(root: Path, captions_file: Path) -> list[str]:
    """Make the arguments of `vlcp-ray run`: the job, the root and the overrides."""
    overrides = [*OVERRIDES, f"caption.source={captions_file}"]
    return [str(JOB), "--root", str(root), *(part for override in overrides for part in ("--set", override))]


def job(captions_file: Path) -> Job:
    """Load the job with its overrides."""
    return load_job(JOB, [*OVERRIDES, f"caption.source={captions_file}"])
