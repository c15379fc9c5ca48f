"""Execution by parts: call a function once for each part of some artifacts, and write the files of the part."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from vlcp_ray.engine.context import Context, share_seconds
from vlcp_ray.engine.tasks import in_flight, task
from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.scale import Pool
from vlcp_ray.store.artifact import Step


@dataclass(frozen=True)
class PartFiles:
    """A part, and the files that it consists of.

    Args:
        part: what `work` is called with.
        files: the name of its file in each of its artifacts, by the fingerprint of the step.
    """

    part: Any
    files: Mapping[str, str]


#: Takes a part, writes its files, and returns the seconds that each of its artifacts took, by the artifact's path.
PartWork = Callable[[Any], Mapping[str, float]]


def run_parts(
    context: Context,
    steps: Sequence[Step],
    table: str,
    parts: Sequence[PartFiles],
    unit: str,
    work: PartWork,
    pool: Pool,
) -> dict[str, float]:
    """Call `work` once for each part that is not done, on at most `pool.num_workers` workers, and show the progress.

    Args:
        table: a part is done if every one of its artifacts has its file of this table.
        unit: what the progress counts.

    Returns the seconds of each artifact, by its fingerprint: its share of the wall-clock time, by the seconds that
    `work` has measured.
    """
    start = time.monotonic()
    artifacts = {step.fingerprint: context.artifact(step) for step in steps}
    names = {fingerprint: {file.name for file in artifact.parts(table)} for fingerprint, artifact in artifacts.items()}
    left = [part for part in parts if any(file not in names[target] for target, file in part.files.items())]
    measured = dict.fromkeys(artifacts, 0.0)
    remote, shared = task(_make_part, pool).remote, ray.put(work)
    calls = (partial(remote, shared, part.part) for part in left)
    with context.progress(steps, len(parts), unit, len(parts) - len(left)) as progress:
        for peaks, seconds in in_flight(calls, pool.num_workers):
            progress.add(1, peaks=peaks)
            for fingerprint, artifact in artifacts.items():
                measured[fingerprint] += seconds.get(artifact.path, 0.0)
    return share_seconds(time.monotonic() - start, measured)


def _make_part(work: PartWork, part: Any) -> tuple[Peaks, Mapping[str, float]]:
    reset_peaks(type(work).__name__)
    seconds = work(part)
    return measure_peaks(), seconds
