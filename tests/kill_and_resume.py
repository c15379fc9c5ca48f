"""Kills the driver in the middle of every stage, starts it again each time, and compares with an undisturbed run.

    python -m tests.kill_and_resume jobs/digits.toml /tmp/kill

Ends with 0 where IMAGES, PROTOTYPES and SYNTHETIC are equal and no file that was complete was written again.
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
from vlcp_ray.store import MANIFEST, Store

#: What is seen of a stage once it is in the middle: part of its rows, classes, checkpoints or trials.
PARTS = {
    "pair": "pairs/*.parquet",
    "finetune": "progress/*.json",
    "prototype": "prototypes/*.parquet",
    "generate": "synthetic/*.parquet",
    "evaluate": "scores/*.parquet",
}
COMPARED = {"ingest": "images", "prototype": "prototypes", "generate": "synthetic", "select": "synthetic"}

Seen = dict[Path, tuple[int, int]]


def main() -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("folder", type=Path, help="gets the roots `undisturbed` and `killed`")
    parser.add_argument("--set", action="append", default=[])
    chosen = parser.parse_args()
    command = [sys.executable, "-m", "vlcp_ray.cli", "run", chosen.job, *(f"--set={s}" for s in chosen.set)]
    calm, killed = chosen.folder / "undisturbed", chosen.folder / "killed"
    subprocess.run([*command, "--root", str(calm)], check=True)
    kept: Seen = {}
    for stage in PARTS:
        kept |= _kill_in(stage, [*command, "--root", str(killed)], killed)
    start = time.monotonic()
    subprocess.run([*command, "--root", str(killed)], check=True)
    print(f"the last run took {time.monotonic() - start:.0f} s")
    again = [path for path, seen in kept.items() if not path.exists() or _stat(path) != seen]
    print(f"{len(kept)} complete files at the kills, {len(again)} of them written again or gone: {again[:5]}")
    different = _compare(chosen.job, chosen.set, calm, killed)
    return 1 if again or different else 0


def _kill_in(stage: str, command: list[str], root: Path) -> Seen:
    """Start the run, kill its driver once the stage has made a part of its artifact, and say which files were there."""
    driver = subprocess.Popen(command)
    while not (parts := _unsealed_parts(root, stage)):
        if driver.poll() is not None:
            raise SystemExit(f"{stage}: the run ended before it could be killed")
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # the workers notice that their driver is gone
    print(f"killed in {stage}, {len(_unsealed_parts(root, stage))} parts of it written (seen at {len(parts)})")
    folders = ("images", "pairs", "prototypes", "synthetic", "scores")
    return {path: _stat(path) for table in folders for path in root.glob(f"*/{table}/[!.]*")}


def _unsealed_parts(root: Path, stage: str) -> list[Path]:
    open_artifacts = [path for path in root.glob(f"{stage}-*") if not (path / MANIFEST).exists()]
    return [part for path in open_artifacts for part in path.glob(PARTS[stage])]


def _stat(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def _compare(job: str, overrides: list[str], calm: Path, killed: Path) -> int:
    different = 0
    for step in graph(load_job(job, overrides)):
        if step.stage in COMPARED:
            one, two = (
                _table(Store.at(str(root)).artifact(step).path, COMPARED[step.stage]) for root in (calm, killed)
            )
            different += not one.equals(two)
            print(f"{step.title:<32} {len(one):>6,} rows {'equal' if one.equals(two) else 'DIFFERENT'}")
    return different


def _table(artifact: str, name: str) -> pa.Table:
    table = parquet.read_table(f"{artifact}/{name}")
    return table.sort_by(table.column_names[0])


if __name__ == "__main__":
    sys.exit(main())
