"""Measures exports: the memory that one holds as sets grow, and its images a second.

    python -m tests.benchmarks.export            ten minutes and 1 GiB of temporary disk on 2 cores

Images are CIFAR-10's, repeated under new names, as a sealed SYNTHETIC; each export runs in a process of its own.
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
from vlcp_ray.exports.job import Choice, export, opened
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.pipeline import graph
from vlcp_ray.schemas import SYNTHETIC, TEACHER, conform
from vlcp_ray.store import Step, Store

SIZES = (2_000, 10_000, 50_000)
FORMS = ("imagefolder", "parquet", "webdataset")
CLASSES = 10
BLOCK = 64  # rows of a file, as generate writes them
TAUGHT = ("evaluate.protocols=['minimax','rded']", "teach.network='ConvNet-3'", "teach.width=32", "teach.input_size=32")
JOB = Path(__file__).parents[2] / "jobs" / "digits.toml"


def main() -> None:
    """Print a line for every form and size, with hard labels alone and with a teacher's soft ones."""
    images = parquet.read_table(SHARED / "cifar10" / "train-00000-of-00001.parquet")
    for sets in ((), TAUGHT):
        for size in SIZES:
            with tempfile.TemporaryDirectory() as scratch:
                write_set(Path(scratch) / "runs", the_job(size, sets), images, size)
                for form in FORMS:
                    command = [sys.executable, "-m", "tests.benchmarks.export", form, scratch, str(size), *sets]
                    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
                    print(f"{'soft' if sets else 'hard'} labels, {form:<11} {told}", flush=True)


def the_job(size: int, sets: tuple[str, ...]) -> Job:
    return load_job(JOB, [f"ipc=[{size // CLASSES}]", *sets])


def write_set(root: Path, job: Job, images: pa.Table, size: int) -> None:
    """A set of SYNTHETIC as `generate` leaves it: files of a block of rows, named by their content."""
    content, labels = [i["bytes"] for i in images["img"].to_pylist()], images["label"].to_pylist()
    by_class = {label: [c for c, mine in zip(content, labels, strict=True) if mine == label] for label in range(10)}
    store, steps = Store.at(str(root)), graph(job)
    made = chosen(steps)
    for start in range(0, size, BLOCK):
        rows = [row(number, by_class, size // CLASSES) for number in range(start, min(start + BLOCK, size))]
        store.artifact(made).write_table(f"synthetic/{start}.parquet", conform(pa.Table.from_pylist(rows), SYNTHETIC))
    store.artifact(made).seal({"rows": size})
    names = [f"class {label}" for label in range(CLASSES)]
    ingest = next(step for step in steps if step.stage == "ingest")
    store.artifact(ingest).seal({"class_names": names, "splits": {"train": size, "val": size}})
    for step in (step for step in steps if step.stage == "teach"):
        network = build_classifier("ConvNet-3", num_classes=CLASSES, input_size=32, width=32, seed=0, norm="batch")
        store.artifact(step).write_bytes(TEACHER, save(network.state_dict()))
        store.artifact(step).seal({"top1": 0.1})


def row(number: int, by_class: dict[int, list[bytes]], ipc: int) -> dict[str, object]:
    label, place = divmod(number, ipc)
    of_it = by_class[label]
    identity = {"image_id": f"synthetic-{label:04d}-{place:05d}", "label": label, "class_name": f"class {label}"}
    told = {"prototype_id": f"{label:04d}-{place:05d}", "text": f"A class {label}, described. " * 8, "seed": number}
    return identity | {"split": "train", "image": of_it[place % len(of_it)]} | told


def chosen(steps: tuple[Step, ...]) -> Step:
    return next(step for step in steps if step.stage == "select" and step.key["method"] == "random")


def one(form: str, scratch: str, size: int, sets: tuple[str, ...]) -> None:
    """Export once and say what it took."""
    job = the_job(size, sets)
    before, start = peak_resident(os.getpid()), time.perf_counter()
    choice, to = Choice(form, method="random"), opened(f"{scratch}/{form}")  # type: ignore[arg-type]
    export(job, Store.at(f"{scratch}/runs"), graph(job), choice, to)
    seconds = time.perf_counter() - start
    peak = peak_resident(os.getpid())
    took = f"{seconds:6.1f} s, {size / seconds:6,.0f} images/s"
    print(f"{size:>7,} images: peak {peak / 2**10:5,.0f} MiB ({before / 2**10:,.0f} before), {took}")


if __name__ == "__main__":
    if sys.argv[1:]:
        one(sys.argv[1], sys.argv[2], int(sys.argv[3]), tuple(sys.argv[4:]))
    else:
        main()
