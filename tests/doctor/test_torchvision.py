"""Tests of the repair of packages that do not import beside a CPU build of torch."""

import sysconfig
from pathlib import Path

import pytest

from tests.doctor.torchvision_package import NMS_MISSING
from vlcp_ray.doctor.torchvision import MODULE, START, Facts, probe, run_python, set_hook

UNLOADABLE = "OSError: Could not load this library: libtorchaudio.so"


def test_set_hook_writes_once_and_removes_what_is_not_wanted(tmp_path: Path) -> None:
    assert set_hook(tmp_path, wanted=False) == []
    assert len(set_hook(tmp_path, wanted=True)) == 1
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set_hook(tmp_path, wanted=True) == []
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert set(before) == {MODULE, START}
    (tmp_path / MODULE).write_text("an older version")
    assert len(set_hook(tmp_path, wanted=True)) == 1
    assert len(set_hook(tmp_path, wanted=False)) == 1
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
def test_facts_need_a_repair_only_beside_a_cpu_torch_with_foreign_libraries(
    facts: Facts, hook: bool, removed: list[str]
) -> None:
    assert (facts.needs_hook, facts.to_remove) == (hook, removed)


def test_probe_of_this_environment_finds_it_repaired_or_sound() -> None:
    facts = probe()
    assert facts.to_remove == []
    assert (Path(sysconfig.get_paths()["purelib"]) / START).exists() == facts.needs_hook


def test_run_python_returns_the_last_line_of_errors_or_the_status() -> None:
    assert run_python("-c", "print('ok')")[:2] == (0, "ok\n")
    assert run_python("-c", "raise ValueError('wrong')")[2] == "ValueError: wrong"
    assert run_python("-c", "raise SystemExit(3)") == (3, "", "ended with status 3")
