"""Fixtures of the fault tests: the folder of all runs, and the tables of an undisturbed run."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.faults.runs import Run, read_tables, write_images, write_scale


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images; the roots of the runs are created in it."""
    path = tmp_path_factory.mktemp("faults")
    write_images(path / "images")
    return path


@pytest.fixture(scope="session")
def undisturbed(folder: Path) -> dict[str, pa.Table]:
    """All tables of a run without faults."""
    run = Run(folder / "undisturbed", write_scale(folder))
    assert run.exit_code() == 0, run.output()
    return read_tables(run.root)
