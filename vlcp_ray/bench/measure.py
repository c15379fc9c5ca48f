"""Measure one kind of work in a process that has just started: `python -m vlcp_ray.bench.measure`.

It reads a `Task` as JSON from its standard input, does some batches, and prints the result of `measure` as JSON.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Final

from vlcp_ray.config import Job
from vlcp_ray.monitoring.allocator import retain_memory
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.settings import Settings
from vlcp_ray.stages import works

_SECONDS: Final = 6.0  # minimum seconds of measurement after the first batch


class Task(Settings):
    """The input of a measuring process.

    Args:
        work: name of the kind of work.
        started: the time when the process was started, in seconds since the epoch.
        cpus: cores of a worker.
    """

    work: str
    job: Job
    scale: Scale
    started: float
    cpus: float


def measure(task: Task) -> dict[str, float]:
    """Measure the start of one kind of work, and its rate.

    Returns:
        start: seconds until the first batch is done, minus the seconds of one batch.
        per_second: operations (or images) per second of the batches after it; 0 where the operations of the model were
            never counted.
        images: images per second.
        call: images of one batch.
        gib: peak memory of the process.
        tokens: tokens per caption, 0 for other work.
    """
    work = works()[task.work]
    if work.retains_memory:
        retain_memory()  # as actors of a streaming plan do
    pool: Pool = getattr(task.scale, work.pool)
    batch = work.make_batch(task.job, pool)
    batch()
    ready = time.time()
    images, amount, batches, tokens = 0, 0.0, 0, 0.0
    while time.time() - ready < _SECONDS or batches < 2:
        done = batch()
        images, amount, batches, tokens = images + done.images, amount + done.amount, batches + 1, done.tokens
    seconds = time.time() - ready
    return {
        "start": max(0.0, ready - task.started - seconds / batches),
        "per_second": 0.0 if math.isnan(amount) else amount / seconds,
        "images": images / seconds,
        "call": images // batches,
        "gib": peak_gib(),
        "tokens": tokens,
    }


def peak_gib() -> float:
    """Return the peak resident memory of this process in GiB (VmHWM of Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20


def main() -> int:
    """Measure the task on standard input, and return the exit code."""
    print(json.dumps(measure(Task.model_validate_json(sys.stdin.read()))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
