"""Tests of `make setup` with a pip that is a script: which indexes it asks, and what it says."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Finds CPU builds of torch where {condition}; writes its arguments to pip.log.
PIP = """#!/bin/sh
case "$*" in
*"pip install"*)
    echo "$*" >>{folder}/pip.log
    {condition} || {{ echo "ERROR: No matching distribution found for torch==2.13.0+cpu"; exit 1; }};;
*) echo "$*" >>{folder}/python.log;;
esac
"""
FROM_INDEX = 'case "$*" in *"--extra-index-url"*) true;; *) false;; esac'


def setup(folder: Path, condition: str, *variables: str) -> tuple[int, str, list[str]]:
    """Run `make setup`; returns its status, what it prints, and the arguments of each call of pip."""
    (folder / "venv" / "bin").mkdir(parents=True)
    python = folder / "venv" / "bin" / "python"
    python.write_text(PIP.format(folder=folder, condition=condition))
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "setup", f"VENV={folder}/venv", "EXTRA=cpu", *variables]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "TORCH_CPU_INDEX"))}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    calls = (folder / "pip.log").read_text().splitlines() if (folder / "pip.log").exists() else []
    return done.returncode, done.stdout + done.stderr, calls


def test_setup_that_finds_a_cpu_build_asks_no_other_index(tmp_path: Path) -> None:
    status, output, calls = setup(tmp_path, "true")
    assert (status, len(calls)) == (0, 1)
    assert "--extra-index-url" not in calls[0]
    assert "trying" not in output
    assert "repair_first=True" in (tmp_path / "python.log").read_text()


@pytest.mark.parametrize("index", ["", "https://mirror.invalid/cpu"])
def test_setup_without_a_cpu_build_asks_the_index_of_pytorch_or_its_copy(index: str, tmp_path: Path) -> None:
    status, output, calls = setup(tmp_path, FROM_INDEX, *([f"TORCH_CPU_INDEX={index}"] if index else []))
    assert (status, len(calls)) == (0, 2)
    asked = calls[1].partition("--extra-index-url ")[2].split()[0]
    assert asked == index or (not index and asked.endswith("/whl/cpu"))
    assert f"pip's indexes have no CPU build of torch: trying {asked}." in output


def test_setup_that_finds_a_cpu_build_nowhere_says_what_to_do(tmp_path: Path) -> None:
    status, output, calls = setup(tmp_path, "false")
    assert (status, len(calls)) == (2, 2)
    assert "neither in its own indexes nor in " in output
    assert "make setup TORCH_CPU_INDEX=ADDRESS" in output
    assert not (tmp_path / "venv" / "installed").exists()


def test_setup_that_fails_for_another_reason_shows_the_log(tmp_path: Path) -> None:
    status, output, calls = setup(tmp_path, '{ echo "ERROR: no space left"; exit 1; }')
    assert (status, len(calls)) == (2, 1)
    assert "ERROR: no space left\nInstallation failed; the whole log is" in output
