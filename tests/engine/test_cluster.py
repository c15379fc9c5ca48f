"""Tests of connecting to Ray: a local one, the cluster at RAY_ADDRESS, and a missing cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from vlcp_ray.engine.cluster import _smallest_gpu, connect

ROOT = Path(__file__).parents[2]
LOCAL = """
import signal, sys
import ray
from vlcp_ray.engine.cluster import connect

def handler(*_):
    pass

signal.signal(signal.SIGTERM, handler)
with connect() as scale:
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    assert signal.getsignal(signal.SIGTERM) is handler
    print(scale.evaluate.num_gpus, len(ray.nodes()))
assert not ray.is_initialized()
"""
#: One attempt of about 3 s, instead of 20 attempts of 41 s each.
ONE_ATTEMPT = {
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    "RAY_gcs_rpc_server_connect_timeout_s": "1",
    "RAY_py_gcs_connect_timeout_s": "1",
    "RAY_gcs_server_request_timeout_seconds": "1",
}
MISSING = """
from vlcp_ray.engine.cluster import connect
from vlcp_ray.settings import ConfigError

try:
    with connect():
        pass
except ConfigError as error:
    print(error)
"""


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment | variables, capture_output=True, text=True
    )


def test_connect_starts_a_silent_local_ray_and_ends_it() -> None:
    done = run(LOCAL)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1] == "1"


def test_connect_to_a_missing_cluster_names_the_fix() -> None:
    done = run(MISSING, RAY_ADDRESS="127.0.0.1:1", **ONE_ATTEMPT)
    assert "RAY_ADDRESS 127.0.0.1:1: cannot connect to Ray (" in done.stdout
    assert "unset RAY_ADDRESS to run locally" in done.stdout


@pytest.mark.filterwarnings("default")
def test_connect_keeps_an_existing_connection(ray_session: None) -> None:
    with connect() as scale:
        assert scale.caption.num_workers >= 1
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("kinds", "gib"),
    [(["H100", "A100-80G"], 80), (["H100", "L4"], 24), (["H100", "unknown"], 16), ([], 16)],
    ids=lambda value: str(value),
)
def test_smallest_gpu_of_the_cluster_is_that_of_its_kinds(kinds: list[str], gib: int) -> None:
    assert _smallest_gpu({"CPU": 8.0} | {f"accelerator_type:{kind}": 1.0 for kind in kinds}) == gib
