"""Tests of the notebook of the Python API: it is up to date, and its cells, the examples of API.md, run in a kernel."""

import json
import shutil
from pathlib import Path

import pytest

from tests.notebook import INSTALL, notebook
from tests.small_job import job, overrides
from vlcp_ray.pipeline import graph

ROOT = Path(__file__).parents[1]
FILE = ROOT / "jobs" / "digits.ipynb"
LOAD = 'job = vr.load("digits")\n'


def test_notebook_file_is_up_to_date() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == notebook(), "python -m tests.notebook > jobs/digits.ipynb"


@pytest.mark.filterwarnings("default")
def test_cells_of_the_notebook_run_in_a_kernel(completed_run: tuple[Path, Path], tmp_path: Path) -> None:
    """All cells but the installation, on the small job, of which a set, its scores and the report are missing."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    root, inputs = completed_run
    steps, settings = graph(job(inputs)), overrides(inputs)
    missing = [step for step in steps if (step.key.get("method"), step.key.get("ipc")) == ("vlcp", 1)]
    assert [step.stage for step in missing] == ["generate", "evaluate"]
    gone = {step.folder for step in (*missing, steps[-1])}
    shutil.copytree(root, tmp_path / "runs", ignore=lambda _, names: gone & set(names))
    cells = nbformat.reads(json.dumps(notebook()), as_version=4)
    cells.cells = [cell for cell in cells.cells if INSTALL not in cell.metadata.get("tags", [])]
    (first,) = [cell for cell in cells.cells if LOAD in cell.source]
    first.source = first.source.replace(
        LOAD, f"from vlcp_ray.config import load_job\njob = load_job('digits', {settings})\n"
    )
    nbformat.validate(cells)
    nbclient.NotebookClient(cells, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {
        cell.source.strip().splitlines()[-1]: [output.get("data", {}) for output in cell.outputs]
        for cell in cells.cells
        if cell.cell_type == "code"
    }
    run = [text for data in shown["vr.run(job)"] if "evaluate" in (text := data.get("text/html", ""))]
    assert "generate" in run[-1]
    assert "report" in run[-1]
    assert "image/png" in shown['vr.show(job, "images")'][-1]
    assert "<iframe srcdoc=" in shown["vr.show(job)"][-1]["text/html"]
    assert (
        "torch.Size([4, 3, 32, 32])"
        in shown["images.shape, [train.classes[label] for label in labels]"][-1]["text/plain"]
    )
