"""Measure the whole digits job against the sum of its references, each at the rate that was measured here."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from tests.benchmarks import ours
from tests.benchmarks.turns import Row
from vlcp_ray.demo import digits

TITLE = "the whole digits job"


def whole(reference: Mapping[str, float]) -> Row:
    """Run the job into an empty root and return its jobs per hour.

    Its time includes the start of Ray, of the engine and of the workers; the sum of the references has no such start.

    Args:
        reference: rates of the references by the titles of their rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "vlcp_ray", "run", str(ours.JOB), "--root", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    parts = _seconds(reference)
    total = sum(parts.values())
    listed = ", ".join(f"{name} {part:.0f}" for name, part in parts.items())
    note = f"{seconds:.0f} s; references {total:.0f}: {listed}"
    return Row(TITLE, "jobs/h", None, [(3600 / total, 3600 / seconds)], note)


def _seconds(reference: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds that the reference of each stage would take for the work of the job."""
    job, train = ours.job(), digits.TRAIN_IMAGES
    classes, sizes = len(digits.CLASS_NAMES), sum(job.ipc)
    trained = job.evaluate.repeats * 3 * sizes * classes * (job.evaluate.epochs or 0) + job.evaluate.full_epochs * train
    work = {
        "pair: caption": train,
        "pair: encode": train,
        "finetune": train * job.finetune.epochs,
        "prototype: 10 classes of CIFAR-10": classes * len(job.ipc),
        "generate": sizes * classes,
        "evaluate: ConvNet-3, width 32, 32 px": trained,
    }
    return {name.partition(": ")[2] or name: count / reference[name] for name, count in work.items()}
