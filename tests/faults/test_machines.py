"""Tests of real runs on clusters whose machines die, join late, or are added and removed by an autoscaler."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.faults.runs import Run, assert_equal, children, is_under_way, read_tables, steps, write_scale
from tests.machines import ADDRESS, Machines
from vlcp_ray.store.artifact import Store

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("default")]

STORE = 200 * 2**20
#: Pools of logical GPUs; the work itself runs on the devices of the test machine.
ON_GPUS = """
[caption]
num_cpus = 1
num_gpus = 0.5
batch_size = 32
[encode]
num_gpus = 0.5
[generate]
num_workers = 2
min_workers = 1
num_gpus = 1
"""

#: The environment of a cluster that asks for no token: this process may have that of a local Ray.
WITHOUT_TOKEN = {"RAY_AUTH_MODE": "disabled"}

#: The configuration of Ray's autoscaler, with a provider that starts raylets on this machine. Every key is required.
AUTOSCALER: dict[str, Any] = {
    "cluster_name": "faults",
    "max_workers": 2,
    "idle_timeout_minutes": 0.2,
    "upscaling_speed": 1,
    "head_node_type": "ray.head.default",
    "provider": {
        "type": "external",
        "disable_node_updaters": True,
        "use_node_id_as_ip": True,
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 6}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 3, "GPU": 1, "object_store_memory": STORE},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


@contextmanager
def machines(count: int) -> Iterator[Machines]:
    """Start a head without work, and a number of workers with four cores each."""
    cluster = Machines(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=4, object_store_memory=STORE)
        yield cluster
    finally:
        cluster.shutdown()


def test_run_with_lost_and_replaced_machines_equals_the_undisturbed_run(
    folder: Path, undisturbed: dict[str, pa.Table]
) -> None:
    with machines(2) as cluster:
        first, second = sorted(cluster.worker_nodes, key=lambda node: node.node_id)
        run = Run(folder / "machines", write_scale(folder), address=cluster.address)
        run.wait_until(lambda: is_under_way(run.root, "pair", "pairs"))
        cluster.remove_node(first, allow_graceful=False)
        third = cluster.add_node(num_cpus=4, object_store_memory=STORE)
        run.wait_until(lambda: is_under_way(run.root, "finetune", "progress"))
        cluster.remove_node(second, allow_graceful=False)
        cluster.add_node(num_cpus=4, object_store_memory=STORE)
        run.wait_until(lambda: is_under_way(run.root, "evaluate", "scores"))
        cluster.remove_node(third, allow_graceful=False)
        assert run.exit_code() == 0, run.output()
    assert_equal(run.root, undisturbed)


def test_run_waits_for_a_gpu_that_joins_late(folder: Path, undisturbed: dict[str, pa.Table]) -> None:
    scale = folder / "gpus.toml"
    scale.write_text("rows_per_block = 32\nresource_timeout = 300\n" + ON_GPUS)
    with machines(1) as cluster:
        run = Run(folder / "late", scale, "--to", "pair", address=cluster.address)
        run.wait_until(lambda: "waiting for caption 1 x 1 CPU 0.5 GPU" in run.output())
        cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=STORE)
        assert run.exit_code() == 0, run.output()
    assert read_tables(run.root, "pair")["pair pairs"].equals(undisturbed["pair pairs"])


def test_finetune_starts_with_the_ranks_that_fit(folder: Path, undisturbed: dict[str, pa.Table]) -> None:
    scale = folder / "elastic.toml"
    scale.write_text("rows_per_block = 32\n[finetune]\nnum_workers = 2\nmin_workers = 1\nnum_cpus = 3\n")
    with machines(1) as cluster:
        run = Run(folder / "elastic", scale, "--to", "finetune", address=cluster.address)
        assert run.exit_code() == 0, run.output()
    (elastic,), (full,) = (
        [Store.at(str(root)).artifact(step).manifest() for step in steps(root) if step.stage == "finetune"]
        for root in (folder / "elastic", folder / "undisturbed")
    )
    assert elastic is not None
    assert full is not None
    assert (elastic["steps"], elastic["images"]) == (full["steps"], full["images"])  # the global batch is the same
    assert elastic["losses"][-1][1] == pytest.approx(full["losses"][-1][1], abs=0.01)


def test_run_without_its_gpu_fails_with_the_fix(folder: Path) -> None:
    scale = folder / "never.toml"
    scale.write_text("rows_per_block = 32\nresource_timeout = 3\n" + ON_GPUS)
    with machines(1) as cluster:
        run = Run(folder / "never", scale, "--to", "pair", address=cluster.address)
        assert run.exit_code() == 1
    assert "Add machines, raise resource_timeout or reduce the pools" in run.output()
    assert "Traceback" not in run.output()


def test_run_with_an_autoscaler_adds_and_removes_gpu_machines(folder: Path, undisturbed: dict[str, pa.Table]) -> None:
    scale = folder / "autoscaled.toml"
    scale.write_text(f"resource_timeout = 300\n{ON_GPUS}\n[finetune]\nnum_workers = 2\n")
    with autoscaled(folder) as (address, head):
        assert count_gpu_machines(head) == 0
        run = Run(folder / "autoscaled", scale, "--to", "generate", address=address, variables=WITHOUT_TOKEN)
        run.wait_until(lambda: count_gpu_machines(head) > 0)
        assert run.exit_code() == 0, run.output()
        end = time.monotonic() + 120
        while count_gpu_machines(head) and time.monotonic() < end:
            time.sleep(1)
        assert count_gpu_machines(head) == 0
    generated = read_tables(run.root, "generate")
    assert {name: undisturbed[name] for name in generated} == generated


@contextmanager
def autoscaled(folder: Path) -> Iterator[tuple[str, int]]:
    """Start a head whose autoscaler adds up to two machines with a logical GPU each: its address and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "autoscaler.json"
    # By default the machines of the provider join port 6379, which may be another Ray.
    provider = AUTOSCALER["provider"] | {"gcs_address": f"{ADDRESS}:{port}"}
    config.write_text(json.dumps(AUTOSCALER | {"provider": provider}))
    options = ["--head", "--block", f"--port={port}", "--num-cpus=6", f"--object-store-memory={STORE}"]
    options.append("--include-dashboard=False")
    with (folder / "autoscaler.log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options, f"--autoscaling-config={config}"],
            env=os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"} | WITHOUT_TOKEN,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        time.sleep(10)
        assert head.poll() is None, (folder / "autoscaler.log").read_text()
        yield f"127.0.0.1:{port}", head.pid
    finally:
        for pid in [*children(head.pid), head.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        head.wait()


def count_gpu_machines(head: int) -> int:
    """Count the raylets that the autoscaler has started, without that of the head."""
    return sum("raylet/raylet" in title for title in children(head).values()) - 1
