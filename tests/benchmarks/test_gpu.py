"""Tests of the checks for a GPU, at the tiny size on a CPU: every stage, and without the large libraries."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import gpu
from tests.benchmarks.gpu import CHECKS, Row, run, table
from vlcp_ray.bench.random_models import stable_diffusion
from vlcp_ray.models.pretrained import count_parameters

#: Refuses the packages that a bare machine with a GPU does not have.
ABSENT = """
import sys

ABSENT = {"ray", "vllm", "sklearn", "pandas", "matplotlib", "torchvision"}

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, *arguments)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [Finder(finder) for finder in sys.meta_path]
"""


#: The stages of the rows of a check, where they are others than its name.
STAGES = {"base-models": {"encode", "finetune", "generate"}}
#: Measures for no longer than one call.
QUICK = """
from tests.benchmarks import variants
from vlcp_ray.bench import run

variants._SECONDS, run._PEAK_SECONDS = {"cpu": 0.0}, 0.1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights, which the tests share."""
    return tmp_path_factory.mktemp("models")


@pytest.mark.filterwarnings("ignore")  # of the libraries that write the folders
@pytest.mark.parametrize(
    "check",
    # Other base models take a minute, and do what the first checks do.
    [pytest.param(name, marks=[pytest.mark.faults] * (name == "base-models")) for name in CHECKS],
)
def test_check_runs_with_tiny_models(check: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "peak", lambda name: 1e12)
    monkeypatch.setattr("tests.benchmarks.variants._SECONDS", {"cpu": 0.0})
    machine, *rows, end = run("tiny", folder, [check])
    assert machine.tflops == 1.0
    assert end.setting == "all"
    assert [row.note for row in rows if row.setting == "FAILED"] == []
    measured = [row for row in rows if row.images_per_second]
    assert measured
    assert all(row.tflops and row.peak_share and row.gib for row in measured)
    assert {row.stage for row in measured} == STAGES.get(check, {check})
    # The tiny models of other families are not counted.
    counted = [row for row in measured if check not in ("evaluate", "base-models")]
    assert all(math.isfinite(row.forecast_gib or 0) and row.forecast_gib for row in counted)
    assert all(math.isfinite(row.tflops or 0) for row in measured if check != "base-models")
    notes = " ".join(row.note for row in rows)
    assert "DIFFERENT" not in notes
    expected = {"encode": "0 not finite", "generate": "0 black, 0 not finite", "finetune": "counters on cpu"}
    expected |= {"base-models": "0 black, 0 not finite", "methods": "the same again"}
    assert expected.get(check, "") in notes


@pytest.mark.filterwarnings("ignore")
def test_checks_run_without_ray_and_vllm(folder: Path, tmp_path: Path) -> None:
    stable_diffusion("tiny", folder)
    command = ["--size", "tiny", "--folder", str(folder), "--only", "generate", "--json", str(tmp_path / "rows.json")]
    code = f"{ABSENT}\n{QUICK}\nfrom tests.benchmarks.gpu import main\nsys.exit(main({command!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[0]["stage"] == "machine"
    assert len(done.stdout.splitlines()) == len(rows) + 1


def test_a_check_that_fails_is_a_row_and_the_exit_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(machine: object) -> None:
        raise RuntimeError("no\nkernel image")

    monkeypatch.setattr(gpu, "peak", lambda name: 1e12)
    monkeypatch.setattr(gpu, "CHECKS", {"encode": fail})
    assert gpu.main(["--size", "tiny", "--folder", str(folder), "--only", "encode"]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert [row.note for row in run("tiny", folder, ["encode"]) if row.setting == "FAILED"] == [
        "RuntimeError: no kernel image"
    ]


def test_table_has_the_figures_that_apply() -> None:
    rows = [Row("encode", "batch 8", 1234.5, 1.25, 0.5, 2.67, 2.5, "0 not finite"), Row("encode", "all", note="3 s")]
    _, first, last = table(rows)
    assert first.split() == ["encode", "batch", "8", "1,234.5", "1.2", "50.0%", "2.7", "2.5", "0", "not", "finite"]
    assert last.split() == ["encode", "all", "3", "s"]


@pytest.mark.filterwarnings("ignore")
def test_tiny_models_have_the_parameters_of_the_demo(folder: Path) -> None:
    assert count_parameters(stable_diffusion("tiny", folder), "unet") == count_parameters(
        "demo/stable_diffusion", "unet"
    )
