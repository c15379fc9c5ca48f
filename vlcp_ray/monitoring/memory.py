"""Measure the peak memory of a process, its child processes and its GPU, and limit the growth of a process."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple


class Peaks(NamedTuple):
    """Peak resident memory of a process, and peak memory of its tensors on a GPU, both in MiB.

    Args:
        halvings: how often a batch was halved because it did not fit into the memory of the GPU.
    """

    memory: int = 0
    gpu_memory: int = 0
    halvings: int = 0

    def maximum(self, other: "Peaks") -> "Peaks":
        """Return the larger of each value."""
        return Peaks(*map(max, self, other))


_current_work, _halvings = [""], [0]


def reset_peaks(work: str) -> None:
    """Reset the peaks if this process starts another kind of work; Ray reuses workers across stages."""
    if _current_work[0] == work:
        return
    _current_work[0], _halvings[0] = work, 0
    with suppress(OSError):  # not Linux, or not permitted: the peak is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (man 5 proc)
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def count_halving() -> None:
    """Count that a batch was halved."""
    _halvings[0] += 1


def measure_peaks(children: bool = False) -> Peaks:
    """Measure the peaks of this process since `reset_peaks`.

    Args:
        children: include child processes, for libraries that start some (vLLM).
    """
    pids = ["self", *(_children() if children else ())]
    on_gpu = cuda.max_memory_allocated() >> 20 if (cuda := _cuda()) else 0
    return Peaks(max(map(_peak_resident, pids)), on_gpu, _halvings[0])


@contextmanager
def limit_growth(size: int) -> Iterator[None]:
    """Let this process take at most `size` bytes more than it has, so that whoever asks for more fails at once.

    Linux counts the memory that is private and writable, used or not; elsewhere there is no limit.

    Raises:
        MemoryError: raised by Python and Arrow inside the `with` block.
    """
    taken = _field(_read(Path("/proc/self/status")), "VmData")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if not taken or (hard != resource.RLIM_INFINITY and hard < taken + size):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (taken + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _cuda() -> Any:
    """Return torch.cuda if this process uses it already, without importing or initializing it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _children() -> list[str]:
    return [pid for file in Path("/proc/self/task").glob("*/children") for pid in _read(file).split()]


def _read(file: Path) -> str:
    """Read a file of /proc; empty if its thread or process has just ended."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _peak_resident(pid: str) -> int:
    status = _read(Path(f"/proc/{pid}/status"))
    if not status and pid == "self":  # not Linux
        kib = 1024 if sys.platform == "darwin" else 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // kib >> 10
    return _field(status, "VmHWM") >> 20


def _field(status: str, name: str) -> int:
    """Return a size in bytes of `/proc/<pid>/status`, 0 where it is missing."""
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(f"{name}:")), 0)
