"""Measures every stage against the way it is done today: `make bench`, or `python -m tests.benchmarks STAGE ...`."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks import digits, evaluate, machine, stages
from tests.benchmarks.turns import HEADER, PAIRS, Row, facts
from vlcp_ray.flow import cluster
from vlcp_ray.scale import Scale

WORK: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "describe": stages.describe,
    "encode": stages.encode,
    "finetune": stages.finetune,
    "prototype": stages.prototypes,
    "generate": stages.generate,
    "evaluate": evaluate.evaluate,
    "machine": machine.machine,
}


def main() -> int:
    """Print the table row by row and write it to a file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(WORK)}; all where none is named")
    parser.add_argument("--to", type=Path, default=Path("bench.json"), metavar="FILE")
    chosen = parser.parse_args()
    if unknown := set(chosen.stages) - set(WORK):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(WORK)}")
    about, start = facts(), time.monotonic()
    print(f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB; medians of {PAIRS} pairs, A B A B")
    print(HEADER)
    rows: list[Row] = []
    with cluster.joined() as scale:
        for name in chosen.stages or WORK:
            for row in WORK[name](scale):
                print(row, flush=True)
                rows.append(row)
    rates = {row.stage: row.reference for row in rows}
    if not chosen.stages:
        rows.append(digits.whole(rates))
        print(rows[-1], flush=True)
    told = {"machine": about, "seconds": round(time.monotonic() - start), "rows": [row.facts() for row in rows]}
    chosen.to.write_text(json.dumps(told, indent=2) + "\n")
    print(f"{time.monotonic() - start:.0f} s; all repetitions: {chosen.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
