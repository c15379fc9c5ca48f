"""Tests of joining the cluster at RAY_ADDRESS: what is wrong with an address, a token or an environment is told."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.engine.test_cluster import CONNECT, run
from vlcp_ray.engine import join
from vlcp_ray.settings import ConfigError

ROOT = Path(__file__).parents[2]
SHADOW = """
import os, sys
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
from vlcp_ray.engine.join import check_workers
from vlcp_ray.settings import ConfigError
try:
    check_workers()
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "cannot connect to Ray (connection refused); start one"),
        ("[::1]:1", "cannot connect to Ray ("),
        ("ray://127.0.0.1:1", "cannot connect to Ray (connection refused); start one"),
        ("no-such-host.invalid:6379", "cannot connect to Ray ("),
        ("http://127.0.0.1:8265", "it is an address for vlcp-ray submit --address; give HOST:PORT"),
        ("redis://127.0.0.1:6379", "give HOST:PORT of the head"),
        ("127.0.0.1", "give HOST:PORT of the head"),
        ("127.0.0.1:port", "give HOST:PORT of the head"),
        ("127.0.0.1:99999", "give HOST:PORT of the head"),
        ("127.0.0.1:6379/x", "give HOST:PORT of the head"),
    ],
)
def test_join_of_an_address_without_a_cluster_names_the_fix(address: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        join.join(address, {}, check_environment=True)
    assert str(raised.value).startswith(f"RAY_ADDRESS {address}: {message}")


@pytest.fixture
def other_server() -> Iterator[str]:
    """The address of a server that answers every connection in another protocol."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_join_of_another_server_says_that_no_ray_answers(other_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "_ANSWER_TIMEOUT", 2.0)
    with pytest.raises(ConfigError, match="something else listens there"):
        join.join(other_server, {}, check_environment=True)


def test_run_at_an_address_without_a_cluster_is_one_sentence() -> None:
    done = run(CONNECT, RAY_ADDRESS="127.0.0.1:1")
    assert done.stdout.startswith("RAY_ADDRESS 127.0.0.1:1: cannot connect to Ray (")
    assert done.stderr == ""


@pytest.mark.filterwarnings("default")
def test_workers_with_another_version_are_refused(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    join.check_workers()
    monkeypatch.setattr(join, "__version__", "9.9")
    with pytest.raises(ConfigError, match=r"have vlcp_ray .*, not 9.9, .*activate this project's environment"):
        join.check_workers()


def test_workers_whose_python_has_a_space_in_its_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "my folder").symlink_to(sys.prefix)
    python = tmp_path / "my folder" / Path(sys.executable).relative_to(sys.prefix)
    done = subprocess.run([python, "-c", SHADOW], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert f"run {python}, and Ray starts no training where this path has a space" in done.stdout, done.stderr[-2000:]


@pytest.mark.faults
def test_workers_without_the_package_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vlcp_ray.py").write_text("raise ImportError\n")
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    program = f"import sys; sys.path.remove({str(tmp_path)!r})\n{SHADOW}"
    environment = os.environ | {"PYTHONPATH": paths, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path.parent, env=environment, capture_output=True, text=True
    )
    assert "cannot import vlcp_ray (Ray runs " in done.stdout, done.stderr


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.AuthenticationError("no token"),
        RuntimeError("Failed to connect: ray.exceptions.AuthenticationError: InvalidAuthToken"),
        RuntimeError("Request failed with status code 401: Unauthorized: Missing authentication token."),
    ],
    ids=["raised", "in the text", "in an answer"],
)
def test_missing_token_is_found_in_whatever_wraps_it(error: Exception) -> None:
    outer = ConnectionError("Failed to connect to Ray cluster")
    outer.__cause__ = error
    assert join.asks_for_token(outer)
    assert not join.asks_for_token(ConnectionError("Failed to connect to Ray cluster"))
    assert not join.asks_for_token(ConnectionError("Failed to connect to http://127.0.0.1:4019, job raysubmit_401"))
