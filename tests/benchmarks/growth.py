"""Measures how cost grows with the image set: a million small real images through ingest, pair, prototype, generate.

    python -m tests.benchmarks.growth ROWS --in FOLDER       1,281,167 rows take about two hours on 2 cores

CIFAR-10's images are repeated under new ids and 1,000 classes, shuffled as the hub's ImageNet is; descriptions come
from a table and latents from the tiny VAE, the cheapest real models. The driver of `pair` is killed at 60 % and started
again. Each stage is a process of its own; while it runs, its memory, the machine's and its files are looked at.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import dataset, parquet

from tests.benchmarks import ours
from tests.benchmarks.ingest import peak_resident
from tests.image_sets import write_parquet
from vlcp_ray.config import load_job
from vlcp_ray.pipeline import graph
from vlcp_ray.sources.raw import image_id
from vlcp_ray.store import Artifact, Store

CLASSES = 1000
ROWS_PER_FILE = 20_000
BLOCK = 512  # rows of a file of pairs, where descriptions are given
STEP = 100_000  # rows between two figures of throughput
#: What differs from the digits job: prototypes of base-text need no fine-tuning, one image a class.
SETTINGS = ("ipc=[1]", 'compare.methods=["base-text"]', "finetune.random_flip=false", "prototype.n_init=1")


@dataclass
class Watch:
    """What a stage took: a look every two seconds."""

    seconds: float = 0.0
    driver: float = 0.0  # MiB at the most
    machine: float = 0.0  # GiB more than before, at the most
    shared: float = 0.0  # GiB in shared memory, where the object store lies, at the most
    marks: list[tuple[float, int]] = field(default_factory=list)  # seconds, files


def main() -> None:
    """Make the set, run the stages, print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("--in", dest="folder", type=Path, required=True, metavar="FOLDER")
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    write_set(folder, chosen.rows)
    sets = [*SETTINGS, f"ingest.source={folder / 'source'}", f"caption.source={folder / 'captions.parquet'}"]
    arguments = [str(ours.JOB), "--root", str(folder / "runs"), *(p for text in sets for p in ("--set", text))]
    artifacts = {step.stage: Store.at(str(folder / "runs")).artifact(step) for step in graph(load_job(ours.JOB, sets))}
    watch = run(arguments, "ingest", artifacts["ingest"], "images")
    tell("ingest", chosen.rows, watch, artifacts["ingest"], "images")
    killed = run(arguments, "pair", artifacts["pair"], "pairs", kill_at=int(0.6 * chosen.rows / BLOCK))
    done, before = count_rows(artifacts["pair"]), len(artifacts["pair"].files("pairs"))
    tell("pair, killed at 60 %", done, killed, artifacts["pair"], "pairs")
    resumed = run(arguments, "pair", artifacts["pair"], "pairs")
    first = next((seconds for seconds, count in resumed.marks if count > before), 0.0)
    tell("pair, resumed", chosen.rows - done, resumed, artifacts["pair"], "pairs")
    print(f"  the first new file {first:.0f} s after the start", flush=True)
    for stage, table in (("prototype", "prototypes"), ("generate", "synthetic")):
        watch = run(arguments, stage, artifacts[stage], table)
        tell(stage, CLASSES, watch, artifacts[stage], table)
        print(f"  {watch.seconds / CLASSES:.3f} s a class, with the start of Ray and of the workers", flush=True)
    for command in ("plan", "status"):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vlcp_ray.cli", command, *arguments], check=True, capture_output=True)
        print(f"{command}: {time.perf_counter() - start:.1f} s", flush=True)


def count_rows(pairs: Artifact) -> int:
    """Rows that are written."""
    return int(dataset.dataset(pairs.files("pairs"), filesystem=pairs.filesystem).count_rows())


def run(arguments: Sequence[str], stage: str, artifact: Artifact, table: str, kill_at: int | None = None) -> Watch:
    """Run the job up to a stage and watch it; kill the driver once there are so many files."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "vlcp_ray.cli", "run", *arguments, "--to", stage], stdout=subprocess.DEVNULL
    )
    watch, start, before = Watch(), time.monotonic(), memory()
    while driver.poll() is None:
        now, count = memory(), len(artifact.files(table))
        watch.driver = max(watch.driver, peak_resident(driver.pid) / 2**10)
        watch.machine, watch.shared = max(watch.machine, now[0] - before[0]), max(watch.shared, now[1] - before[1])
        watch.marks.append((time.monotonic() - start, count))
        if kill_at is not None and count >= kill_at:
            driver.kill()
        time.sleep(2)
    watch.seconds = time.monotonic() - start
    if driver.returncode and kill_at is None:
        raise SystemExit(f"{stage}: the run ended with {driver.returncode}")
    time.sleep(10 if kill_at else 0)  # Ray's processes end after their driver
    return watch


def tell(title: str, rows: int, watch: Watch, artifact: Artifact, table: str) -> None:
    """Print what a stage took, and its throughput by stretches of 100,000 rows."""
    files = artifact.filesystem.get_file_info(artifact.files(table))
    sizes = [info.size for info in files]
    print(
        f"{title}: {rows:,} rows in {watch.seconds:.0f} s ({rows / watch.seconds:,.0f} rows/s); driver at most "
        f"{watch.driver:.0f} MiB, machine {watch.machine:.1f} GiB more, {watch.shared:.1f} of them shared memory; "
        f"{len(sizes):,} files of {np.median(sizes) / 2**10:,.0f} KiB (median), {sum(sizes) / 2**30:.2f} GiB",
        flush=True,
    )
    if rates := list(stretches(watch, rows, len(sizes))):
        middle = float(np.median(rates))
        shown = ", ".join(f"{rate:,.0f}" for rate in rates)
        spread = max(abs(rate / middle - 1) for rate in rates)
        print(f"  rows/s for each {STEP:,} rows: {shown}; at most {spread:.0%} off their median", flush=True)


def stretches(watch: Watch, rows: int, files: int) -> Iterator[float]:
    """Rows a second of each stretch, from the files seen so far; the first one has the start of the workers in it."""
    first = watch.marks[0][1]
    each = rows / max(1, files - first)
    marks = [(seconds, (count - first) * each) for seconds, count in watch.marks]
    reached = [next((mark for mark in marks if mark[1] >= level), None) for level in range(STEP, rows, STEP)]
    ends = [mark for mark in reached if mark]
    for (t0, n0), (t1, n1) in pairwise(ends):
        yield (n1 - n0) / (t1 - t0)


def memory() -> tuple[float, float]:
    """GiB that the machine has in use, and those of shared memory among them."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    values = {line[0].rstrip(":"): int(line[1]) / 2**20 for line in lines}
    return values["MemTotal"] - values["MemAvailable"], values["Shmem"]


def write_set(folder: Path, rows: int) -> None:
    """Parquet files as the hub has them, and a table with a description for every image; once."""
    if (folder / "captions.parquet").exists():
        return
    sample = ours.cifar(8000)
    content, said, names = ours.files(sample), ours.captions(sample), [f"class {n:03}" for n in range(CLASSES)]
    labels = np.random.default_rng(0).permutation(np.arange(rows) % CLASSES)
    count = -(-rows // ROWS_PER_FILE)
    for number in range(count):
        mine = range(number * ROWS_PER_FILE, min(rows, (number + 1) * ROWS_PER_FILE))
        files = [(content[i % 8000], f"{i:07}.png", int(labels[i])) for i in mine]
        write_parquet(folder / "source" / f"train-{number:05}-of-{count:05}.parquet", files, names, 1000)
    ids = [image_id("train", names[label], f"{i:07}.png") for i, label in enumerate(labels)]
    captions = pa.table({"image_id": ids, "caption": [said[i % 8000] for i in range(rows)]})
    parquet.write_table(captions, folder / "captions.parquet")


if __name__ == "__main__":
    main()
