"""Kill processes of real runs at random moments, many times, and compare the tables of every run that ends.

    python -m tests.faults.soak --kills 200
    python -m tests.faults.soak --kills 20 --s3 --share 0.02

A kill hits the driver, which is started again, or a worker: a part of ingest, an actor with the captioning engine or
the VAE, a rank, a class, a trial. A run that ends is compared with an undisturbed one, and the next root is begun. The
exit code is 0 if every run ended and all tables, counts and sums of files are equal.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from tests.faults.runs import Root, Run, S3Root, assert_equal, children, read_tables, write_images, write_scale
from tests.s3 import BUCKET, Proxy, Server, proxy, server

_MEAN_PAUSE = 12.0  # seconds before a kill; a tenth of the pauses is longer than 27 s, in which a run gets on
_DRIVER_SHARE = 0.3  # of all kills
#: Titles of the processes that work, by kind. The engine is the larger of the actors of captioning and encoding.
_WORKERS = {
    "ingest": "ray::ReadPart",
    "actor": "MapBatches(RowActor)",
    "rank": "RayTrainWorker",
    "class": "ray::_process_class",
    "trial": "ray::_trial",
    "reader or writer": "ray::MapBatches",
}
_MAX_FAILURES = 20  # runs in a row that end with an error


def main() -> int:
    """Kill as often as asked, let the last run end, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true", help="root and images on a real S3 server behind a proxy")
    parser.add_argument("--share", type=float, default=0.0, help="share of S3 requests that are answered SlowDown")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_images(folder / "images")
        scale = write_scale(folder)
        whole = Run(folder / "undisturbed", scale)
        if whole.exit_code():
            print(whole.output())
            return 1
        undisturbed = read_tables(whole.root)
        place = stack.enter_context(_s3(folder, arguments.share)) if arguments.s3 else None
        return _soak(folder, scale, undisturbed, place, arguments.kills, random.Random(arguments.seed))


@contextmanager
def _s3(folder: Path, share: float) -> Iterator[tuple[Server, Proxy]]:
    with server(folder / "s3") as real, proxy(real, folder / "proxy") as front:
        pafs.copy_files(str(folder / "images"), f"{BUCKET}/images", destination_filesystem=real.filesystem())
        front.set_faults(p503=share)
        yield real, front


def _soak(
    folder: Path,
    scale: Path,
    undisturbed: dict[str, pa.Table],
    place: tuple[Server, Proxy] | None,
    kills: int,
    generator: random.Random,
) -> int:
    start, counts, ended = time.monotonic(), Counter[str](), 0
    while sum(counts.values()) < kills:
        root: Root = S3Root(f"soak-{ended}", folder, *place) if place else folder / f"soak-{ended}"
        _disturb(root, scale, generator, counts, kills)
        assert_equal(root, undisturbed)
        ended += 1
        done = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        seconds = time.monotonic() - start
        print(f"{seconds:6.0f} s: {ended} runs ended with equal tables; killed {done}", flush=True)
    return 0


def _disturb(root: Root, scale: Path, generator: random.Random, counts: Counter[str], kills: int) -> None:
    """Run a job to its end, with kills at random moments until there were enough of them."""
    run, failures = Run(root, scale), 0
    while True:
        time.sleep(generator.expovariate(1 / _MEAN_PAUSE))
        code = run.exit_code() if sum(counts.values()) >= kills else run.process.poll()
        if code == 0:
            return
        if code is not None:
            failures += 1
            print(f"a run ended with exit code {code}:\n{run.output()}", flush=True)
            if failures > _MAX_FAILURES:
                sys.exit(1)
            run = Run(root, scale)
            continue
        driver_is_killed = generator.random() < _DRIVER_SHARE
        kind = "driver" if driver_is_killed else _kill_worker(run.process.pid, generator)
        if driver_is_killed:
            run.kill()
            run = Run(root, scale)
        if kind:
            counts[kind] += 1
            print(f"kill {sum(counts.values())}: {kind}", flush=True)


def _kill_worker(driver: int, generator: random.Random) -> str:
    """Kill one working process of a run; return its kind, or "" if none works."""
    found = [(kind, pid) for pid, title in children(driver).items() for kind, part in _WORKERS.items() if part in title]
    if not found:
        return ""
    kind, pid = generator.choice(found)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return kind


if __name__ == "__main__":
    sys.exit(main())
