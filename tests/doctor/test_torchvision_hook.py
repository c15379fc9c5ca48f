"""Tests of torchvision's start-up hook, in processes that start with it."""

from pathlib import Path

from tests.doctor.torchvision_package import NMS_MISSING, run_in, write_torchvision
from vlcp_ray.doctor.torchvision import set_hook


def test_hook_repairs_the_import_of_torchvision_and_changes_nothing_else(tmp_path: Path) -> None:
    write_torchvision(tmp_path, loads=False)
    assert NMS_MISSING in run_in(tmp_path, "import torchvision").stderr
    assert set_hook(tmp_path, wanted=True)
    repaired = run_in(tmp_path, "import torchvision, torch; print(hasattr(torch.ops.torchvision, 'qnms'))")
    assert (repaired.stdout.strip(), repaired.stderr) == ("True", "")
    other = run_in(
        tmp_path, "print('torch' in sys.modules); import torch; print(hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert other.stdout.split() == ["False", "False"]


def test_hook_installed_twice_is_one_finder(tmp_path: Path) -> None:
    set_hook(tmp_path, wanted=True)
    code = "import sys, _vlcp_torchvision as h; h.install(); print(sum(type(f) is h.Finder for f in sys.meta_path))"
    assert run_in(tmp_path, code).stdout.strip() == "1"


def test_hook_beside_a_library_that_loads_defines_nothing(tmp_path: Path) -> None:
    """The library's own operators would be a second definition and end the process."""
    write_torchvision(tmp_path, loads=True)
    set_hook(tmp_path, wanted=True)
    assert NMS_MISSING in run_in(tmp_path, "import torchvision").stderr
