"""Kill the driver in the middle of every stage, restart it each time, and compare with an undisturbed run.

    python -m tests.kill_and_resume jobs/digits.toml /tmp/kill

The exit code is 0 if IMAGES, PROTOTYPES and SYNTHETIC are equal and no complete file was written again.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from vlcp_ray.config import load_job
from vlcp_ray.pipeline import graph
from vlcp_ray.store.artifact import MANIFEST, Store

#: The files that a stage writes while it is under way: part of its rows, classes, checkpoints or trials.
PARTS = {
    "pair": "pairs/*.parquet",
    "finetune": "progress/*.json",
    "prototype": "prototypes/*.parquet",
    "generate": "synthetic/*.parquet",
    "evaluate": "scores/*.parquet",
}
COMPARED = {"ingest": "images", "prototype": "prototypes", "generate": "synthetic", "select": "synthetic"}

FileStates = dict[Path, tuple[int, int]]  # inode and time of the last change


def main() -> int:
    """Run the comparison, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("folder", type=Path, help="where the roots `undisturbed` and `killed` are created")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    overrides = [f"--set={override}" for override in arguments.set]
    command = [sys.executable, "-m", "vlcp_ray", "run", arguments.job, *overrides]
    undisturbed, killed = arguments.folder / "undisturbed", arguments.folder / "killed"
    subprocess.run([*command, "--root", str(undisturbed)], check=True)
    complete: FileStates = {}
    for stage in PARTS:
        complete |= _kill_in(stage, [*command, "--root", str(killed)], killed)
    start = time.monotonic()
    subprocess.run([*command, "--root", str(killed)], check=True)
    print(f"the last run took {time.monotonic() - start:.0f} s")
    changed = [path for path, state in complete.items() if not path.exists() or _state(path) != state]
    print(f"{len(complete)} complete files at the kills, {len(changed)} of them written again or lost: {changed[:5]}")
    different = _count_differences(arguments.job, arguments.set, undisturbed, killed)
    return 1 if changed or different else 0


def _kill_in(stage: str, command: list[str], root: Path) -> FileStates:
    """Start the run, kill its driver when the stage has written a part, and return the states of all complete files."""
    driver = subprocess.Popen(command)
    while not (parts := _parts(root, stage)):
        if driver.poll() is not None:
            raise SystemExit(f"{stage}: the run ended before it could be killed")
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # the workers end after their driver
    print(f"killed in {stage}, {len(_parts(root, stage))} parts written ({len(parts)} when the kill was sent)")
    folders = ("images", "pairs", "prototypes", "synthetic", "scores")
    return {path: _state(path) for table in folders for path in root.glob(f"*/{table}/[!.]*")}


def _parts(root: Path, stage: str) -> list[Path]:
    incomplete = [path for path in root.glob(f"{stage}-*") if not (path / MANIFEST).exists()]
    return [part for path in incomplete for part in path.glob(PARTS[stage])]


def _state(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def _count_differences(job: str, overrides: list[str], undisturbed: Path, killed: Path) -> int:
    different = 0
    for step in graph(load_job(job, overrides)):
        if step.stage in COMPARED:
            one, two = (
                _table(Store.at(str(root)).artifact(step).path, COMPARED[step.stage]) for root in (undisturbed, killed)
            )
            different += not one.equals(two)
            print(f"{step.title:<32} {len(one):>6,} rows {'equal' if one.equals(two) else 'DIFFERENT'}")
    return different


def _table(artifact: str, name: str) -> pa.Table:
    table = parquet.read_table(f"{artifact}/{name}")
    return table.sort_by(table.column_names[0])


if __name__ == "__main__":
    sys.exit(main())
