"""Tests of the batch files in a real Slurm: a job that is cancelled or out of time equals an undisturbed run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.faults.runs import JOB, assert_equal, is_complete, is_under_way, overrides, write_scale
from tests.slurm import COMMANDS, Slurm, two_nodes

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not all(map(shutil.which, COMMANDS)), reason="Slurm is not installed"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with two_nodes() as started:
        yield started


class Job:
    """A job of this test: the small one of the fault tests."""

    def __init__(self, slurm: Slurm, file: str, root: Path) -> None:
        self.slurm, self.file, self.root, self.number = slurm, file, root, ""

    def submit(self, *options: str) -> None:
        self.number = self.slurm.call(
            "sbatch", "--parsable", "--gres=none", "--mem=4G", "--cpus-per-task=4", f"--chdir={ROOT}", *options,
            f"--output={self.root}-%j.log", f"clusters/slurm/{self.file}", str(JOB), f"--root={self.root}",
            f"--scale={write_scale(self.root.parent)}",
            *(part for override in overrides(self.root) for part in ("--set", override)),
        )  # fmt: skip

    def output(self) -> str:
        return Path(f"{self.root}-{self.number}.log").read_text()


@pytest.mark.parametrize("file", ["one-node.sbatch", "many-nodes.sbatch"])
def test_cancelled_job_resumes_and_equals_the_undisturbed_run(
    slurm: Slurm, folder: Path, undisturbed: dict[str, pa.Table], file: str
) -> None:
    job = Job(slurm, file, folder / file.partition(".")[0])
    job.submit()
    slurm.wait_until(lambda: is_under_way(job.root, "pair", "pairs") or slurm.is_over(job.number))
    assert not slurm.is_over(job.number), job.output()
    slurm.call("scancel", job.number)
    slurm.wait_until(lambda: slurm.is_over(job.number))
    assert slurm.job(job.number)["JobState"] == "CANCELLED"
    assert slurm.job(job.number)["Restarts"] == "0"
    assert not is_complete(job.root, "pair")
    job.submit()
    slurm.wait_until(lambda: slurm.is_over(job.number))
    assert slurm.job(job.number)["JobState"] == "COMPLETED", job.output()
    if file == "many-nodes.sbatch":
        assert "Ray runs on 2 nodes" in job.output()
    assert_equal(job.root, undisturbed)


def test_job_whose_time_is_over_is_queued_again_and_resumes(
    slurm: Slurm, folder: Path, undisturbed: dict[str, pa.Table]
) -> None:
    """A minute or two of each attempt are left, as Slurm may send the signal a minute early."""
    job = Job(slurm, "one-node.sbatch", folder / "limit")
    job.submit("--time=3", "--signal=B:TERM@60")
    slurm.wait_until(lambda: slurm.is_over(job.number))
    assert slurm.job(job.number)["JobState"] == "COMPLETED", job.output()
    assert int(slurm.job(job.number)["Restarts"]) >= 1
    assert "its time is over" in job.output()
    assert_equal(job.root, undisturbed)
