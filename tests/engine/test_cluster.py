"""Tests of connecting to Ray: a local one that others do not reach, and how its plans and those of a cluster fail."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray._private import utils as ray_utils
from ray.data import ActorPoolStrategy, Dataset

from vlcp_ray.engine import cluster
from vlcp_ray.engine.cluster import connect

ROOT = Path(__file__).parents[2]
LOCAL = """
import signal, sys, psutil
import ray
from vlcp_ray.engine.cluster import connect

def handler(*_):
    pass

signal.signal(signal.SIGTERM, handler)
with connect() as scale:
    assert ray.get([ray.remote(lambda: 7).options(num_cpus=1).remote() for _ in range(4)]) == [7] * 4
    assert signal.getsignal(signal.SIGTERM) is handler
    interface = ray.remote(lambda: __import__("os").environ.get("GLOO_SOCKET_IFNAME"))
    print(ray.get(interface.remote()), len(ray.nodes()))
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
print(*found)
assert not ray.is_initialized()
"""
CONNECT = """
from vlcp_ray.engine.cluster import connect
from vlcp_ray.settings import ConfigError

try:
    with connect():
        print("connected")
except ConfigError as error:
    print(error)
"""


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment | variables, capture_output=True, text=True
    )


def test_connect_starts_a_silent_local_ray_on_loopback_that_leaves_no_token(tmp_path: Path) -> None:
    done = run(LOCAL, HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    interface, nodes, *found = done.stdout.split()
    assert (interface, nodes) == ("lo", "1")  # the ranks of fine-tuning talk on it
    assert len(found) >= 5
    assert {address.removeprefix("::ffff:") for address in found} == {"127.0.0.1"}
    assert list(tmp_path.rglob("auth_token")) == []  # with it `ray start` would ask every client for a token


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_temporary_folder_too_long_for_sockets_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    done = run(CONNECT, **{name: str(folder)})
    assert done.stdout.startswith(f"{name} {folder}: too long for Ray")
    assert done.stderr == ""


def test_entrypoint_that_ray_shows_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_utils, "get_entrypoint_name", lambda: "vlcp-ray run --root s3://KEY:SECRET@bucket")
    with cluster._public_entrypoint():
        assert ray_utils.get_entrypoint_name() == "vlcp-ray run --root s3://***@bucket"


@pytest.mark.parametrize(("value", "address"), [("", None), (" ", None), ("local", None), ("auto", "auto")])
def test_joined_address_is_that_of_a_cluster(value: str, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster.joined_address() == address


def test_small_shared_memory_is_logged_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "SHM", tmp_path)
    monkeypatch.setattr(cluster, "_MIN_SHM", 2**60)
    cluster._log_slow_storage()
    assert "start the container with a larger --shm-size" in capsys.readouterr().out


class FailingActor:
    """Raises in the first starts of all its actors together, then works."""

    def __init__(self, folder: str, failures: int) -> None:
        import uuid

        (Path(folder) / uuid.uuid4().hex).touch()
        if len(list(Path(folder).iterdir())) <= failures:
            raise RuntimeError("the engine died")

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def failing_plan(folder: Path, failures: int) -> Dataset:
    folder.mkdir()
    arguments = {"folder": str(folder), "failures": failures}
    compute = ActorPoolStrategy(min_size=1, max_size=1)
    rows = ray.data.from_items([{"number": number} for number in range(8)])
    return rows.map_batches(FailingActor, fn_constructor_kwargs=arguments, compute=compute, batch_format="pyarrow")


@pytest.mark.faults
@pytest.mark.filterwarnings("default")
def test_plan_on_a_cluster_whose_engines_fail_ten_times_gives_all_rows(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "max_consecutive_actor_init_deaths", 0)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    cluster._configure_ray_data(logs=False)
    rows = failing_plan(tmp_path / "starts", failures=10).take_all()
    assert sorted(row["number"] for row in rows) == list(range(8))


@pytest.mark.filterwarnings("default")
def test_local_plan_whose_engine_fails_ends_at_once(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(ray.exceptions.RayError, match="the engine died"):
        failing_plan(tmp_path / "starts", failures=1).take_all()
    assert len(list((tmp_path / "starts").iterdir())) == 1


@pytest.mark.filterwarnings("default")
def test_connect_keeps_an_existing_connection(ray_session: None) -> None:
    with connect() as scale:
        assert scale.caption.num_workers >= 1
    assert ray.is_initialized()


GPU_MACHINE = """
import ray
from vlcp_ray.engine.cluster import connect

ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False)
with connect() as scale:
    print(scale.memory_of_gpu, scale.finetune.num_workers, scale.finetune.gradient_checkpointing)
"""


def test_scale_of_a_machine_has_the_memory_of_its_gpus(tmp_path: Path) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA RTX A6000, 49140'\n")
    command.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    run = subprocess.run(
        [sys.executable, "-c", GPU_MACHINE], capture_output=True, text=True, env=environment, timeout=120
    )
    assert run.stdout.splitlines()[-1:] == ["47.98828125 1 False"], run.stderr[-2000:]


WITH_VARIABLES = """
import os, sys, ray
from vlcp_ray.engine import cluster
with cluster.connect():
    read = ray.remote(lambda: (os.environ["NAME"], sys.executable))
    print(*ray.get(read.options(runtime_env={"env_vars": {"NAME": "value"}}).remote()), sep="|")
"""


def test_workers_with_variables_start_where_the_path_of_python_has_a_space(tmp_path: Path) -> None:
    """As the ranks of a training, in an environment in a folder with a space."""
    (tmp_path / "my folder").symlink_to(sys.prefix)
    python = tmp_path / "my folder" / Path(sys.executable).relative_to(sys.prefix)
    done = subprocess.run([python, "-c", WITH_VARIABLES], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.splitlines()[-1:] == [f"value|{python}"], done.stderr[-2000:]
