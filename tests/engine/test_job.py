"""Tests of the start of a submitted job, in the environment and without it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "vlcp_ray.engine.job", "plan", "jobs/digits.toml", "--root")


def test_job_without_the_environment_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-S", *COMMAND, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "without pydantic, pyarrow, ray, shtab, torch: activate the project's environment" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_job_in_the_environment_runs_the_command(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, *COMMAND, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "artifacts to make under" in done.stdout
