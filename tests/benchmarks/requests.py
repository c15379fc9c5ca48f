"""Count the requests of a job whose root and image set are on S3: a real server behind a proxy that logs each request.

python -m tests.benchmarks.requests jobs/digits.toml
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.s3 import BUCKET, Proxy, proxy, server


def main() -> int:
    """Run the job, `plan` and `status`, print the requests of each by kind, and return the exit code of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--delay", type=float, default=0.05, help="seconds for each request of plan and status (0.05)")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder, "s3")) as real,
        proxy(real, Path(folder, "proxy")) as front,
    ):
        code = 0
        for command in ("run", "plan", "status"):
            code = code or count(command, arguments.job, arguments.set, front)
            front.set_faults(delay=arguments.delay)
        print(f"{len(real.objects('runs'))} objects under the root")
    return code


def count(command: str, job: str, overrides: list[str], front: Proxy) -> int:
    """Run one command and print its requests."""
    before, start = front.count(), time.monotonic()
    sets = [part for text in overrides for part in ("--set", text)]
    whole = [sys.executable, "-m", "vlcp_ray", command, job, "--root", f"s3://{BUCKET}/runs", *sets]
    code = subprocess.run(whole, env={**_environment(), **front.environment()}, stdout=subprocess.DEVNULL).returncode
    kinds = front.count() - before
    listed = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())
    print(f"{command:<8} {time.monotonic() - start:6.1f} s {kinds.total():>6,} requests: {listed}", flush=True)
    return code


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


if __name__ == "__main__":
    sys.exit(main())
