"""The folder of all disturbed runs of a session, and the run that nothing disturbs."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.faults.runs import Run, tables, write_images, write_scale


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the roots lie, and beside them the images."""
    place = tmp_path_factory.mktemp("faults")
    write_images(place / "images")
    return place


@pytest.fixture(scope="session")
def calm(folder: Path) -> dict[str, pa.Table]:
    """All tables of a run that nothing disturbs."""
    run = Run(folder / "calm", write_scale(folder))
    assert run.code() == 0, run.said()
    return tables(run.root)
