"""Measure how time and memory grow with the image set, in ingest, pair, prototype and generate.

    python -m tests.benchmarks.growth ROWS --in FOLDER       1,281,167 rows take 14 minutes on 2 cores

The images of CIFAR-10 are repeated under new ids in 1,000 classes, shuffled as the hub's ImageNet is. Captions come
from a table and latents from the tiny VAE, so that the models take little time. The driver of pair is killed at 60 %
and restarted. Each stage runs in a process of its own, whose memory and files are polled, as is the machine's memory.
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
from pyarrow import parquet

from tests.benchmarks import ours
from tests.benchmarks.ingest import peak_resident
from tests.image_sets import write_parquet
from vlcp_ray.config import load_job
from vlcp_ray.pipeline import graph
from vlcp_ray.sources.reader import image_id
from vlcp_ray.store.artifact import Artifact, Store

CLASSES = 1000
ROWS_PER_FILE = 20_000
BLOCK = 512  # rows per file of pairs where captions come from a table
STEP = 100_000  # rows per figure of throughput
#: Overrides of the digits job: base-text needs no fine-tuning.
SETTINGS = ("ipc=[1]", 'compare.methods=["base-text"]', "finetune.random_flip=false", "prototype.n_init=1")


@dataclass
class Measurement:
    """Time and memory of a stage, polled every two seconds."""

    seconds: float = 0.0
    driver: float = 0.0  # peak in MiB
    machine: float = 0.0  # peak of the memory in use in GiB, beyond that at the start
    shared: float = 0.0  # of them shared memory, which holds the object store
    marks: list[tuple[float, int]] = field(default_factory=list)  # seconds, files


def main() -> None:
    """Write the image set, run the stages, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("--in", dest="folder", type=Path, required=True, metavar="FOLDER")
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    write_set(folder, chosen.rows)
    sets = [*SETTINGS, f"ingest.source={folder / 'source'}", f"caption.source={folder / 'captions.parquet'}"]
    arguments = [str(ours.JOB), "--root", str(folder / "runs"), *(p for text in sets for p in ("--set", text))]
    artifacts = {step.stage: Store.at(str(folder / "runs")).artifact(step) for step in graph(load_job(ours.JOB, sets))}
    measured = run(arguments, "ingest", artifacts["ingest"], "images")
    print_measurement("ingest", chosen.rows, measured, artifacts["ingest"], "images")
    killed = run(arguments, "pair", artifacts["pair"], "pairs", kill_at=int(0.6 * chosen.rows / BLOCK))
    done, before = count_rows(artifacts["pair"]), len(artifacts["pair"].parts("pairs"))
    print_measurement("pair, killed at 60 %", done, killed, artifacts["pair"], "pairs")
    resumed = run(arguments, "pair", artifacts["pair"], "pairs")
    first = next((seconds for seconds, count in resumed.marks if count > before), 0.0)
    print_measurement("pair, resumed", chosen.rows - done, resumed, artifacts["pair"], "pairs")
    print(f"  the first new file {first:.0f} s after the start", flush=True)
    for stage, table in (("prototype", "prototypes"), ("generate", "synthetic")):
        measured = run(arguments, stage, artifacts[stage], table)
        print_measurement(stage, CLASSES, measured, artifacts[stage], table)
        print(f"  {measured.seconds / CLASSES:.3f} s per class, with the start of Ray and of the workers", flush=True)
    for command in ("plan", "status"):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vlcp_ray", command, *arguments], check=True, capture_output=True)
        print(f"{command}: {time.perf_counter() - start:.1f} s", flush=True)


def count_rows(pairs: Artifact) -> int:
    """Count the rows that are written."""
    return int(pairs.open_parts(pairs.parts("pairs")).count_rows())


def run(
    arguments: Sequence[str], stage: str, artifact: Artifact, table: str, kill_at: int | None = None
) -> Measurement:
    """Run the job up to a stage and measure it.

    Args:
        kill_at: number of files at which the driver is killed.
    """
    driver = subprocess.Popen(
        [sys.executable, "-m", "vlcp_ray", "run", *arguments, "--to", stage], stdout=subprocess.DEVNULL
    )
    measured, start, before = Measurement(), time.monotonic(), memory()
    while driver.poll() is None:
        now, count = memory(), len(artifact.parts(table))
        measured.driver = max(measured.driver, peak_resident(driver.pid) / 2**10)
        measured.machine, measured.shared = (
            max(measured.machine, now[0] - before[0]),
            max(measured.shared, now[1] - before[1]),
        )
        measured.marks.append((time.monotonic() - start, count))
        if kill_at is not None and count >= kill_at:
            driver.kill()
        time.sleep(2)
    measured.seconds = time.monotonic() - start
    if driver.returncode and kill_at is None:
        raise SystemExit(f"{stage}: the run ended with {driver.returncode}")
    time.sleep(10 if kill_at else 0)  # Ray's processes end after their driver
    return measured


def print_measurement(title: str, rows: int, measured: Measurement, artifact: Artifact, table: str) -> None:
    """Print time, memory and files of a stage, and its throughput over each 100,000 rows."""
    sizes = [part.size for part in artifact.parts(table)]
    print(
        f"{title}: {rows:,} rows in {measured.seconds:.0f} s ({rows / measured.seconds:,.0f} rows/s); driver's peak "
        f"{measured.driver:.0f} MiB, machine {measured.machine:.1f} GiB more, of which {measured.shared:.1f} shared; "
        f"{len(sizes):,} files of {np.median(sizes) / 2**10:,.0f} KiB (median), {sum(sizes) / 2**30:.2f} GiB",
        flush=True,
    )
    if rates := list(stretches(measured, rows, len(sizes))):
        middle = float(np.median(rates))
        shown = ", ".join(f"{rate:,.0f}" for rate in rates)
        deviation = max(abs(rate / middle - 1) for rate in rates)
        print(f"  rows/s for each {STEP:,} rows: {shown}; at most {deviation:.0%} from their median", flush=True)


def stretches(measured: Measurement, rows: int, files: int) -> Iterator[float]:
    """Yield the rows per second of each stretch of `STEP` rows but the first, computed from the numbers of files."""
    first = measured.marks[0][1]
    each = rows / max(1, files - first)
    marks = [(seconds, (count - first) * each) for seconds, count in measured.marks]
    reached = [next((mark for mark in marks if mark[1] >= level), None) for level in range(STEP, rows, STEP)]
    ends = [mark for mark in reached if mark]
    for (t0, n0), (t1, n1) in pairwise(ends):
        yield (n1 - n0) / (t1 - t0)


def memory() -> tuple[float, float]:
    """Return the memory that the machine has in use, and the shared memory, in GiB."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    values = {line[0].rstrip(":"): int(line[1]) / 2**20 for line in lines}
    return values["MemTotal"] - values["MemAvailable"], values["Shmem"]


def write_set(folder: Path, rows: int) -> None:
    """Write Parquet files as the hub has them, and a table with a caption for every image, unless they exist."""
    if (folder / "captions.parquet").exists():
        return
    sample = ours.cifar(8000)
    content, texts, names = ours.files(sample), ours.captions(sample), [f"class {n:03}" for n in range(CLASSES)]
    labels = np.random.default_rng(0).permutation(np.arange(rows) % CLASSES)
    count = -(-rows // ROWS_PER_FILE)
    for number in range(count):
        indices = range(number * ROWS_PER_FILE, min(rows, (number + 1) * ROWS_PER_FILE))
        files = [(content[i % 8000], f"{i:07}.png", int(labels[i])) for i in indices]
        write_parquet(folder / "source" / f"train-{number:05}-of-{count:05}.parquet", files, names, 1000)
    ids = [image_id("train", names[label], f"{i:07}.png") for i, label in enumerate(labels)]
    captions = pa.table({"image_id": ids, "caption": [texts[i % 8000] for i in range(rows)]})
    parquet.write_table(captions, folder / "captions.parquet")


if __name__ == "__main__":
    main()
