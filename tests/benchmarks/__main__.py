"""Measure every stage against its reference: `make bench`, or `python -m tests.benchmarks STAGE ...`."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks import digits, evaluate, machine, stages
from tests.benchmarks.turns import HEADER, PAIRS, Row, facts
from vlcp_ray.engine import cluster
from vlcp_ray.scale import Scale

WORK: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "caption": stages.caption,
    "encode": stages.encode,
    "finetune": stages.finetune,
    "prototype": stages.prototypes,
    "generate": stages.generate,
    "evaluate": evaluate.evaluate,
    "machine": machine.machine,
}


def main() -> int:
    """Print the table row by row, write it to a file, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"one of {', '.join(WORK)}; by default all")
    parser.add_argument("--to", type=Path, default=Path("bench.json"), metavar="FILE")
    chosen = parser.parse_args()
    if unknown := set(chosen.stages) - set(WORK):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(WORK)}")
    machine_facts, start = facts(), time.monotonic()
    hardware = f"{machine_facts['cpu']}, {machine_facts['cores']} cores, {machine_facts['memory_gib']} GiB"
    print(f"{hardware}; medians of {PAIRS} pairs, A B A B")
    print(HEADER)
    rows: list[Row] = []
    with cluster.connect() as scale:
        for name in chosen.stages or WORK:
            for row in WORK[name](scale):
                print(row, flush=True)
                rows.append(row)
    rates = {row.stage: row.reference for row in rows}
    if not chosen.stages:
        rows.append(digits.whole(rates))
        print(rows[-1], flush=True)
    seconds = time.monotonic() - start
    result = {"machine": machine_facts, "seconds": round(seconds), "rows": [row.facts() for row in rows]}
    chosen.to.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{seconds:.0f} s; all repetitions: {chosen.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
