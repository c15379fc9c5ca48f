"""Measure ingest: its rate against a plain multiprocess Pillow loop, the driver's memory as sets grow, and inspect.

    python -m tests.benchmarks.ingest            a few minutes and 1.5 GiB of temporary disk on 2 cores

The images are those of the shared data, repeated under new names: photographs of ImageNet for the rate, images of
CIFAR-10 for the memory.
"""

import io
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

from PIL import Image
from pyarrow import parquet

from tests.image_sets import SHARED, write_parquet
from vlcp_ray.config import Job
from vlcp_ray.engine import cluster
from vlcp_ray.engine.context import Context
from vlcp_ray.pipeline import graph
from vlcp_ray.settings import build
from vlcp_ray.stages.ingest.run import run as ingest
from vlcp_ray.store.artifact import Store

REPEATS = 50  # of the 120 photographs
CLASSES = 5  # gives a class about as many images as one of ImageNet has
PAIRS = 5
SIZES = (2_000, 10_000, 100_000)
INSPECTED = 100_000  # files, in 1,000 classes


def main() -> None:
    """Print all measurements."""
    with tempfile.TemporaryDirectory() as scratch:
        looking(Path(scratch))
        rate(Path(scratch))
        memory(Path(scratch))


def rate(scratch: Path) -> None:
    """Measure images per second of the plain loop and of ingest, in turns, while both Ray and the processes run."""
    files = photographs(scratch / "photographs")
    print(f"{len(files):,} photographs, {sum(f.stat().st_size for f in files) / len(files) / 2**10:.0f} KiB each")
    ratios = []
    with cluster.connect() as scale, multiprocessing.Pool(os.cpu_count()) as pool:
        pool.map(decode, files[:50])
        for turn in range(PAIRS):
            start = time.perf_counter()
            pool.map(decode, files, chunksize=32)
            plain = time.perf_counter() - start
            start = time.perf_counter()
            job = build(Job, {"name": "x", "ingest": {"source": str(scratch / "photographs")}}, "x")
            context = Context(job, scale, Store.at(str(scratch / f"runs{turn}")))
            ingest(context, graph(job)[:1])
            ours = time.perf_counter() - start
            ratios.append(plain / ours)
            rates = [f"{len(files) / seconds:,.0f} images/s" for seconds in (plain, ours)]
            print(f"plain loop {rates[0]}, ingest {rates[1]}, ratio {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")


def decode(file: Path) -> tuple[int, int]:
    """Read a file and decode it to RGB, as the plain loop does."""
    return Image.open(io.BytesIO(file.read_bytes())).convert("RGB").size


def photographs(folder: Path) -> list[Path]:
    """Write the sample of ImageNet as an image folder, with every photograph many times."""
    for tar_file in sorted((SHARED / "imagenet-sample").glob("*.tar")):
        with tarfile.open(tar_file) as tar:
            for member in tar:
                if member.name.endswith(".jpg") and (file := tar.extractfile(member)):
                    content, name = file.read(), member.name
                    place = folder / "train" / f"class {zlib.crc32(name.encode()) % CLASSES}"
                    place.mkdir(parents=True, exist_ok=True)
                    for copy in range(REPEATS):
                        (place / f"{copy}-{name}").write_bytes(content)
    return sorted(folder.rglob("*.jpg"))


def looking(scratch: Path) -> None:
    """Measure `vlcp-ray inspect` of a folder of many small files, as a process of its own."""
    content = io.BytesIO()
    Image.effect_noise((64, 64), 100).convert("RGB").save(content, "JPEG")
    for number in range(INSPECTED):
        split = "val" if number % 10_000 < 1_000 else "train"
        place = scratch / "many" / split / f"class {number % 1_000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(content.getvalue())
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-m", "vlcp_ray", "inspect", str(scratch / "many")]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"inspect of {INSPECTED:,} files: {time.perf_counter() - start:.1f} s; {out.splitlines()[1]}")


def memory(scratch: Path) -> None:
    """Measure the peak memory of the driver of `vlcp-ray run --to ingest` for sets of growing size."""
    images = parquet.read_table(SHARED / "cifar10" / "train-00000-of-00001.parquet")
    content, labels = [image["bytes"] for image in images["img"].to_pylist()], images["label"].to_pylist()
    for size in SIZES:
        rows = [(content[i % len(content)], f"{i}.png", labels[i % len(content)]) for i in range(size)]
        source = write_parquet(scratch / f"{size}.parquet", rows, [f"class {label}" for label in range(10)], 1000)
        job = Path(__file__).parents[2] / "jobs" / "digits.toml"
        command = [
            sys.executable,
            "-m",
            "vlcp_ray",
            "run",
            str(job),
            f"--set=ingest.source={source}",
            "--to=ingest",
        ]
        start = time.perf_counter()
        driver = subprocess.Popen([*command, f"--root={scratch / 'memory'}"], stdout=subprocess.DEVNULL)
        peak = 0
        while driver.poll() is None:
            peak = max(peak, peak_resident(driver.pid))
            time.sleep(0.1)
        if driver.returncode:
            raise SystemExit(f"ingest of {size} rows ended with status {driver.returncode}")
        seconds = time.perf_counter() - start
        print(f"{size:>7,} rows: driver's peak {peak / 2**10:,.0f} MiB, {seconds:.1f} s with Ray's start")


def peak_resident(pid: int) -> int:
    """Return the peak resident memory of a process in KiB; the rusage of its parent would count the parent too."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return max((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), default=0)


if __name__ == "__main__":
    main()
