"""The command `fetch`: fetch what a job needs, and print how the job then runs without a network."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from vlcp_ray.config import Job
from vlcp_ray.cost.requirements import format_gib
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.offline.fetch import SUMS, Fetched, environment, write_sums
from vlcp_ray.offline.fetch import fetch as fetch_parts
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.artifact import Step
from vlcp_ray.store.uris import public


def fetch(job: Job, steps: Sequence[Step], to: str | None, command: Sequence[str], overrides: Sequence[str]) -> int:
    """Fetch what a job needs, print each part with its size, and the command that runs the job from it.

    Args:
        steps: its graph.
        to: a folder; None: the caches of this machine.
        command: the command that runs the job.
        overrides: its `--set`.
    """
    if to is not None and "://" in to:
        raise ConfigError(f"--to {public(to)}: give a folder of this machine, and copy it from there")
    folder = Path(os.path.abspath(os.path.expanduser(to))) if to else None
    if folder and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--to {to}: it is a file; give a folder")
    parts = list[Fetched]()
    for one in fetch_parts(job, steps, folder):
        parts.append(one)
        print(printable(str(one)), flush=True)
    size = format_gib(sum(one.bytes for one in parts) / 2**30)
    if folder and any(one.files for one in parts):
        write_sums(folder, parts)
        print(f"all: {size}; {folder}/{SUMS} has the hash of every file (sha256sum --check {SUMS}, in that folder)")
        print(f"copy {folder} to the machine without internet with its links (rsync -a, or tar), and run there,")
        print("with the path that it has there:")
    else:
        folder = None  # nothing is in it
        print(f"all: {size}; without a network run:")
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment(folder).items()]
    changed = [f"{one.field}={one.value}" for one in parts if one.value]
    fields = {one.partition("=")[0] for one in changed}
    kept = [public(one) for one in overrides if one.partition("=")[0].strip() not in fields]
    sets = [part for one in (*kept, *changed) for part in ("--set", one)]
    print(printable(f"  {' '.join(variables)} {shlex.join([*map(public, command), *sets])}"))
    return 0
