"""Measure exports: their peak memory as sets grow, and their images per second.

    python -m tests.benchmarks.export            ten minutes and 1 GiB of temporary disk on 2 cores

The images are those of CIFAR-10, repeated under new names, as a complete SYNTHETIC. Each export runs in a process of
its own.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from safetensors.torch import save

from tests.benchmarks.ingest import peak_resident
from tests.image_sets import SHARED
from vlcp_ray.config import Job, load_job
from vlcp_ray.exports.job import Choice, export, open_target
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.pipeline import graph
from vlcp_ray.schemas import SYNTHETIC, conform
from vlcp_ray.stages.teach import WEIGHTS
from vlcp_ray.store.artifact import Step, Store

SIZES = (2_000, 10_000, 50_000)
FORMS = ("imagefolder", "parquet", "webdataset")
CLASSES = 10
BLOCK = 64  # rows per file, as generate writes them
WITH_TEACHER = (
    "evaluate.protocols=['minimax','rded']",
    "teach.network='ConvNet-3'",
    "teach.width=32",
    "teach.input_size=32",
)
JOB = Path(__file__).parents[2] / "jobs" / "digits.toml"


def main() -> None:
    """Print a line for every form and size, with hard labels alone and with a teacher's soft labels too."""
    images = parquet.read_table(SHARED / "cifar10" / "train-00000-of-00001.parquet")
    for overrides in ((), WITH_TEACHER):
        for size in SIZES:
            with tempfile.TemporaryDirectory() as scratch:
                write_set(Path(scratch) / "runs", job_of(size, overrides), images, size)
                for form in FORMS:
                    command = [sys.executable, "-m", "tests.benchmarks.export", form, scratch, str(size), *overrides]
                    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
                    print(f"{'soft' if overrides else 'hard'} labels, {form:<11} {line}", flush=True)


def job_of(size: int, overrides: tuple[str, ...]) -> Job:
    """Load the digits job with one set of `size` images."""
    return load_job(JOB, [f"ipc=[{size // CLASSES}]", *overrides])


def write_set(root: Path, job: Job, images: pa.Table, size: int) -> None:
    """Write a complete SYNTHETIC in files of one block of rows each, and the artifacts that an export reads besides."""
    content, labels = [image["bytes"] for image in images["img"].to_pylist()], images["label"].to_pylist()
    by_class = {label: [c for c, own in zip(content, labels, strict=True) if own == label] for label in range(10)}
    store, steps = Store.at(str(root)), graph(job)
    synthetic = random_set(steps)
    for start in range(0, size, BLOCK):
        rows = [row(number, by_class, size // CLASSES) for number in range(start, min(start + BLOCK, size))]
        store.artifact(synthetic).write_table(
            f"synthetic/{start}.parquet", conform(pa.Table.from_pylist(rows), SYNTHETIC)
        )
    store.artifact(synthetic).complete({"rows": size})
    names = [f"class {label}" for label in range(CLASSES)]
    ingest = next(step for step in steps if step.stage == "ingest")
    store.artifact(ingest).complete({"class_names": names, "splits": {"train": size, "val": size}})
    for step in (step for step in steps if step.stage == "teach"):
        network = build_classifier("ConvNet-3", num_classes=CLASSES, input_size=32, width=32, seed=0, norm="batch")
        store.artifact(step).write_bytes(WEIGHTS, save(network.state_dict()))
        store.artifact(step).complete({"top1": 0.1})


def row(number: int, by_class: dict[int, list[bytes]], ipc: int) -> dict[str, object]:
    """Make one row of SYNTHETIC."""
    label, place = divmod(number, ipc)
    identity = {"image_id": f"synthetic-{label:04d}-{place:05d}", "label": label, "class_name": f"class {label}"}
    provenance = {
        "prototype_id": f"{label:04d}-{place:05d}",
        "text": f"A class {label} in a caption. " * 8,
        "seed": number,
    }
    return identity | {"split": "train", "image": by_class[label][place % len(by_class[label])]} | provenance


def random_set(steps: tuple[Step, ...]) -> Step:
    """Return the step that makes the set of random images."""
    return next(step for step in steps if step.stage == "select" and step.key["method"] == "random")


def measure(form: str, scratch: str, size: int, overrides: tuple[str, ...]) -> None:
    """Export once, and print its time and its peak memory."""
    job = job_of(size, overrides)
    before, start = peak_resident(os.getpid()), time.perf_counter()
    choice, to = Choice(form, method="random"), open_target(f"{scratch}/{form}")
    export(job, Store.at(f"{scratch}/runs"), graph(job), choice, to)
    seconds = time.perf_counter() - start
    peak = peak_resident(os.getpid())
    speed = f"{seconds:6.1f} s, {size / seconds:6,.0f} images/s"
    print(f"{size:>7,} images: peak {peak / 2**10:5,.0f} MiB ({before / 2**10:,.0f} before), {speed}")


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), tuple(sys.argv[4:]))
    else:
        main()
