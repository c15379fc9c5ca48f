"""Repair packages that do not import beside a CPU build of torch, for `doctor --fix`.

Beside a CPU build of torch, pip installs the torchvision, torchaudio and torchcodec of a CUDA build, whose compiled
libraries do not load. transformers and vllm import all three if they are installed, and fail with them. vLLM's LLaVA
needs torchvision, so a start-up hook repairs it. Nothing in this project reads audio or video, so torchaudio and
torchcodec are removed.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MODULE: Final = "_vlcp_torchvision.py"
START: Final = "vlcp_ray_torchvision_fix.pth"
START_LINE: Final = "import _vlcp_torchvision; _vlcp_torchvision.install()\n"
UNNEEDED: Final = ("torchaudio", "torchcodec")

# Without the hook: with it, a repaired environment would look as if it needed no repair.
_PROBE: Final = """
import importlib, json, sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != "_vlcp_torchvision"]
import torch
errors = {}
for name in ("torchvision", "torchaudio", "torchcodec"):
    try:
        importlib.import_module(name)
    except Exception as error:
        errors[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"cuda": torch.version.cuda, "errors": errors}))
"""


@dataclass(frozen=True)
class Facts:
    """The state of torch and its companions, without the hook.

    Args:
        cuda: the CUDA version that torch was built for; None for a CPU build.
        errors: the errors of the companions that do not import, by package.
    """

    cuda: str | None
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def needs_hook(self) -> bool:
        return self.cuda is None and "operator torchvision::nms does not exist" in self.errors.get("torchvision", "")

    @property
    def to_remove(self) -> list[str]:
        return [n for n in UNNEEDED if self.cuda is None and "Could not load this library" in self.errors.get(n, "")]


def probe() -> Facts:
    """Import torch and its companions without the hook, in a separate process.

    Raises:
        RuntimeError: torch itself does not import.
    """
    status, output, error = run_python("-c", _PROBE)
    if status:
        raise RuntimeError(error)
    return Facts(**json.loads(output.splitlines()[-1]))


def repair(site: Path) -> list[str]:
    """Repair the environment whose site-packages is `site`.

    Returns:
        A sentence for each change.

    Raises:
        RuntimeError: torch does not import, or pip cannot remove a package.
        OSError: `site` cannot be written.
    """
    facts = probe()
    changes = set_hook(site, wanted=facts.needs_hook)
    for name in facts.to_remove:
        _uninstall(name)
        changes.append(f"{name} removed: it does not load beside a CPU build of torch, and nothing here uses it")
    return changes


def run_python(*arguments: str) -> tuple[int, str, str]:
    """Run this interpreter.

    Returns:
        Its status, its output, and the last line of its errors, or where there is none its status in words.
    """
    # -P: do not import a torch.py from the current folder.
    command = [sys.executable, "-P", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    error = process.stderr.strip().rpartition("\n")[2] or f"ended with status {process.returncode}"
    return process.returncode, process.stdout, error


def set_hook(site: Path, wanted: bool) -> list[str]:
    """Write the start-up hook into `site` or remove it, and return a sentence if anything changed."""
    source = Path(__file__).with_name("torchvision_hook.py").read_text(encoding="utf-8")
    # The module is written before the line that imports it and removed after it: processes may start in between.
    files = {MODULE: source, START: START_LINE}
    if wanted:
        changed = [_write(site / name, text) for name, text in files.items()]
        return ["torchvision's start-up hook written"] if any(changed) else []
    present = [site / name for name in reversed(files) if (site / name).exists()]
    for path in present:
        path.unlink()
    return ["torchvision's start-up hook removed: torchvision does not need it"] if present else []


def _write(path: Path, text: str) -> bool:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return True


def _uninstall(name: str) -> None:
    status, _, error = run_python("-m", "pip", "uninstall", "--quiet", "--yes", name)
    if status:
        raise RuntimeError(f"pip cannot remove {name}: {error}")
