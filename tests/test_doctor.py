"""Tries the doctor's findings and the repair on real processes, folders and imports."""

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

from vlcp_ray import doctor, repair
from vlcp_ray.doctor import Finding
from vlcp_ray.repair import Facts

NMS_MISSING = "RuntimeError: operator torchvision::nms does not exist"
UNLOADABLE = "OSError: Could not load this library: libtorchaudio.so"

# What a torchvision whose library does not load does at import, and one whose library does.
TORCHVISION = """
from . import extension
from . import _meta_registrations
"""
EXTENSION = "def _has_ops():\n    return {loads}\n"
REGISTRATIONS = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
"""


@pytest.fixture
def fake_torchvision(tmp_path: Path) -> Path:
    """A folder with a torchvision that registers as the real one does and whose library does not load."""
    return make_torchvision(tmp_path, loads=False)


def make_torchvision(folder: Path, loads: bool) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(TORCHVISION)
    (package / "extension.py").write_text(EXTENSION.format(loads=loads))
    (package / "_meta_registrations.py").write_text(REGISTRATIONS)
    return folder


def run(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that starts as one of an environment whose site-packages is `site`, with this torch."""
    start = f"import site, sys; site.addsitedir({str(site)!r}); sys.path += {sys.path!r}\n"
    return subprocess.run([sys.executable, "-S", "-c", start + code], capture_output=True, text=True, check=False)


def test_hook_repairs_the_import_and_only_that(fake_torchvision: Path) -> None:
    assert NMS_MISSING in run(fake_torchvision, "import torchvision").stderr
    assert repair.set_hook(fake_torchvision, wanted=True)
    mended = run(fake_torchvision, "import torchvision, torch; print(hasattr(torch.ops.torchvision, 'qnms'))")
    assert (mended.stdout.strip(), mended.stderr) == ("True", "")
    other = run(
        fake_torchvision, "print('torch' in sys.modules); import torch; print(hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert other.stdout.split() == ["False", "False"]


def test_hook_is_there_once_at_every_start(tmp_path: Path) -> None:
    repair.set_hook(tmp_path, wanted=True)
    code = "import sys, _vlcp_torchvision as h; h.install(); print(sum(type(f) is h.Finder for f in sys.meta_path))"
    assert run(tmp_path, code).stdout.strip() == "1"


def test_hook_leaves_a_library_that_loads_alone(tmp_path: Path) -> None:
    """Its own operators would come second and end the process."""
    make_torchvision(tmp_path, loads=True)
    repair.set_hook(tmp_path, wanted=True)
    assert NMS_MISSING in run(tmp_path, "import torchvision").stderr


def test_hook_is_written_once_and_taken_away_when_not_wanted(tmp_path: Path) -> None:
    assert repair.set_hook(tmp_path, wanted=False) == []
    assert len(repair.set_hook(tmp_path, wanted=True)) == 1
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert repair.set_hook(tmp_path, wanted=True) == []
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert set(before) == {repair.MODULE, repair.START}
    (tmp_path / repair.MODULE).write_text("an older version")
    assert len(repair.set_hook(tmp_path, wanted=True)) == 1
    assert len(repair.set_hook(tmp_path, wanted=False)) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("facts", "hook", "removed"),
    [
        (Facts(None, {"torchvision": NMS_MISSING, "torchaudio": UNLOADABLE}), True, ["torchaudio"]),
        (Facts("13.0", {"torchvision": NMS_MISSING, "torchaudio": UNLOADABLE}), False, []),
        (Facts(None, {"torchvision": "ModuleNotFoundError: No module named 'torchvision'"}), False, []),
        (Facts(None, {"torchcodec": "RuntimeError: ffmpeg is missing"}), False, []),
        (Facts(None), False, []),
    ],
    ids=["cpu torch", "cuda torch", "no torchvision", "another reason", "matching"],
)
def test_only_a_cpu_torch_with_foreign_libraries_is_mended(facts: Facts, hook: bool, removed: list[str]) -> None:
    assert (facts.needs_hook, facts.to_remove) == (hook, removed)


def test_this_environment_is_mended_or_needs_nothing() -> None:
    facts = repair.probe()
    assert facts.to_remove == []
    assert (Path(sysconfig.get_paths()["purelib"]) / repair.START).exists() == facts.needs_hook


def test_root_can_be_written_and_is_left_as_it_was(tmp_path: Path) -> None:
    for root in (str(tmp_path / "new"), (tmp_path / "uri").as_uri()):
        assert next(doctor.storage(root)).state == "ok"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_root_that_cannot_be_written_is_wrong_and_has_a_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (str(tmp_path / "file" / "runs"), "nowhere://bucket/runs"):
        (finding,) = doctor.storage(root)
        assert finding.state == "wrong"
        assert "--root" in finding.cure


def test_one_wrong_finding_makes_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "IMPORTS", {"json": "import json"})  # the large ones take half a minute
    monkeypatch.setattr(doctor, "_TORCH", "print('none')")
    monkeypatch.setattr(doctor, "versions", lambda: iter(()))  # of the environment, which may be a part of ours
    assert doctor.main(str(tmp_path / "runs")) == 0
    (tmp_path / "file").touch()
    assert doctor.main(str(tmp_path / "file" / "runs")) == 1
    assert "-> give a --root" in capsys.readouterr().out


def test_versions_are_compared_with_the_pins() -> None:
    version = metadata.version("torch")
    assert doctor.pinned("torch", version).state == "ok"
    assert doctor.pinned("torch", version.partition("+")[0]).state == "ok"
    assert "make setup" in doctor.pinned("torch", "1.0").cure
    assert doctor.pinned("no-such-package", "1.0").found == "not installed"
    assert all(finding.name and finding.found for finding in doctor.versions())


def test_a_crash_at_import_is_a_line_and_the_rest_is_still_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os; os.kill(os.getpid(), 11)"
    imports = {"first": "import json", "crash": crash, "missing": "import no_such_module", "last": "import csv"}
    monkeypatch.setattr(doctor, "IMPORTS", imports)
    findings = list(doctor.imports())
    assert [(f.name, f.state) for f in findings] == [
        ("import first", "ok"),
        ("import crash", "wrong"),
        ("import missing", "wrong"),
        ("import last", "ok"),
    ]
    assert findings[2].found == "ModuleNotFoundError: No module named 'no_such_module'"


def test_table_is_aligned_and_a_hint_is_not_wrong() -> None:
    lines = doctor.table([Finding("a", "1"), Finding("longer", "2", "do this", hint=True)]).splitlines()
    assert lines == ["ok     a       1", "hint   longer  2", "               -> do this"]
