"""Knows how a process keeps the memory of its large tensors on the CPU, and how much memory it had at its peak."""

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

# Of mallopt(3), each with its default: trim threshold, top padding, the number of blocks that come from mmap.
_DEFAULTS: Final = {-1: 128 * 1024, -2: 128 * 1024, -4: 65536}
_KEEPING: Final = {-1: 2**31 - 1, -2: 64 * 2**20, -4: 0}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, freed memory stays with the process for the next tensor; afterwards it goes back to the machine.

    The C library takes every block of over 32 MB from the kernel and hands it back when it is freed, so that each
    operation on large activations pays for its pages anew: a step of ConvNet-6 at 224 pixels spends half its time on
    that (47 against 107 images/s on one core), one of ConvNet-3 at 32 pixels a third (1,500 against 2,550). The
    numbers computed are the same. Only glibc has the switch; elsewhere nothing happens.
    """
    keep_memory()
    try:
        yield
    finally:
        if library := _glibc():
            for option, value in _DEFAULTS.items():
                library.mallopt(option, value)
            library.malloc_trim(0)


def keep_memory() -> None:
    """From now on, what `kept_memory` does within it: for processes that do nothing else."""
    if library := _glibc():
        for option, value in _KEEPING.items():
            library.mallopt(option, value)


def _glibc() -> Any:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


class Peaks(NamedTuple):
    """The most memory that a process held, in MiB, and the most that its tensors held on a GPU."""

    memory: int = 0
    gpu_memory: int = 0

    def most(self, other: "Peaks") -> "Peaks":
        return Peaks(max(self.memory, other.memory), max(self.gpu_memory, other.gpu_memory))


_at_work_on = [""]


def begin(work: str) -> None:
    """Forget the peaks of other work that this process did before: workers go on from stage to stage."""
    if _at_work_on[0] == work:
        return
    _at_work_on[0] = work
    with suppress(OSError):  # no Linux, or none that lets one: the peak is then that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def peaks(children: bool = False) -> Peaks:
    """The peaks of this process since `begin`; with its children's, where a library works in processes of its own."""
    pids = ["self", *(_children() if children else ())]
    return Peaks(max(map(_resident, pids)), cuda.max_memory_allocated() >> 20 if (cuda := _cuda()) else 0)


def _cuda() -> Any:
    """torch.cuda where this process uses it: nothing is loaded or started to find out."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _children() -> list[str]:
    return [pid for file in Path("/proc/self/task").glob("*/children") for pid in _read(file).split()]


def _read(file: Path) -> str:
    """The content, or nothing where the thread or process that it tells of has just ended."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _resident(pid: str) -> int:
    status = _read(Path(f"/proc/{pid}/status"))
    if not status and pid == "self":  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return next((int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)
