"""Write a small torchvision that imports as the real one does, with or without a library that loads."""

import subprocess
import sys
from pathlib import Path

NMS_MISSING = "RuntimeError: operator torchvision::nms does not exist"

_PACKAGE = """
from . import extension
from . import _meta_registrations
"""
_EXTENSION = "def _has_ops():\n    return {loads}\n"
_REGISTRATIONS = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
"""


def write_torchvision(folder: Path, loads: bool) -> None:
    """Write the package; without a library that loads, its import fails with `NMS_MISSING`."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(_PACKAGE)
    (package / "extension.py").write_text(_EXTENSION.format(loads=loads))
    (package / "_meta_registrations.py").write_text(_REGISTRATIONS)


def run_in(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that starts as one of an environment whose site-packages is `site`, with this torch."""
    start = f"import site, sys; site.addsitedir({str(site)!r}); sys.path += {sys.path!r}\n"
    return subprocess.run([sys.executable, "-S", "-c", start + code], capture_output=True, text=True, check=False)
