"""Tests of the wheel: built, installed without the checkout, and run as by a user who has nothing else (1 minute)."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vlcp_ray.doctor.torchvision import START, START_LINE
from vlcp_ray.settings import SHIPPED, shipped_files

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")


def call(*command: str | Path, cwd: Path) -> str:
    """Run a command without the variables with which these tests import the checkout; returns its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the project, built with the setuptools of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("vlcp_ray", *SHIPPED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    call(*pip, "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and its dependencies from this one, but nothing of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    here = [path for path in sys.path if Path(path).name == "site-packages"]  # whose own .pth files are not read there
    hook = [START_LINE] if any((Path(path) / START).exists() for path in here) else []
    (site / (START if hook else "dependencies.pth")).write_text("\n".join([*here, *hook]))
    return folder


def test_wheel_has_the_package_and_the_files_that_are_named_without_a_path(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("vlcp_ray/")}
    listed = subprocess.run(["git", "ls-files", "vlcp_ray"], cwd=ROOT, capture_output=True, text=True, check=True)
    package = {name for name in listed.stdout.split() if (ROOT / name).is_file()}
    shipped = {f"vlcp_ray/{folder}/{file.name}" for folder in SHIPPED for file in (ROOT / folder).glob("*.toml")}
    assert names == package | shipped | {"vlcp_ray/clusters/kuberay/scale.toml"}
    assert "vlcp_ray/demo/llava/chat_template.jinja" in names


def test_installed_wheel_lists_its_jobs_and_shows_what_a_run_needs(installed: Path) -> None:
    command = installed / "env" / "bin" / "vlcp-ray"
    listed = call(command, "jobs", cwd=installed).split()
    assert {name for folder in SHIPPED for name in shipped_files(folder)} <= set(listed)
    assert "19 of 19 artifacts to make" in call(command, "plan", "digits", "--scale", "two-cores", cwd=installed)
    where = call(installed / "env" / "bin" / "python", "-c", "import vlcp_ray; print(vlcp_ray.__file__)", cwd=installed)
    assert Path(where.strip()).is_relative_to(installed)


def test_installed_wheel_runs_the_digits_to_pair(installed: Path) -> None:
    """With four images of each class: most of the minute is the start of vLLM."""
    python = installed / "env" / "bin" / "python"
    call(python, "-m", "vlcp_ray", "run", "digits", "--sample", "4", "--to", "pair", cwd=installed)
    (manifest,) = installed.glob("runs/pair-*/manifest.json")
    assert json.loads(manifest.read_text())["rows"] == 40
