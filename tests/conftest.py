"""What all tests share: one Ray for the session, one thread each, no network."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any library is imported: nothing here may reach a hub, and 2 cores are all that the suite is promised.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray, the way `vlcp-ray run` starts it."""
    from vlcp_ray.flow import cluster

    with cluster.joined():
        yield


@pytest.fixture(scope="session")
def tiny_stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random-weights Stable Diffusion in the real format, built once."""
    from tests.tiny_models import build_stable_diffusion

    return str(build_stable_diffusion(Path(tmp_path_factory.mktemp("stable_diffusion"))))
