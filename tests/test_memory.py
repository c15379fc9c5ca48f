"""Holds that memory is kept while tensors come and go and given back after, and that peaks are those of the work."""

import mmap
import subprocess
import sys

import pytest

from vlcp_ray.memory import begin, kept_memory, peaks

# A fresh interpreter: page faults and resident memory are those of the whole process.
_PROGRAM = """
import resource, numpy as np
from vlcp_ray.memory import begin, kept_memory, peaks

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(20_000_000)  # 160 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults(1)
start = resident()
with kept_memory():
    faults(1)
    kept = faults(5)
    within = resident()
print(kept, faults(5), within - start, resident() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults of glibc")
def test_memory_is_kept_within_and_given_back_after() -> None:
    told = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout
    kept, not_kept, within, after = map(int, told.split())
    assert not_kept > 500
    assert kept < not_kept / 10
    assert within > 150_000_000
    assert after < 50_000_000


def test_an_error_passes() -> None:
    with pytest.raises(ValueError, match="mine"), kept_memory():
        raise ValueError("mine")


def test_the_peak_is_that_of_the_work_at_hand() -> None:
    begin("before")
    before = peaks().memory
    with mmap.mmap(-1, 200 << 20) as held:  # pages of its own, whatever the C library has kept of other tests
        held[:: 1 << 12] = b"1" * (200 << 8)
        high = peaks().memory
    assert 190 < high - before < 400
    begin("before")
    assert abs(peaks().memory - high) < 30  # the same work; the kernel adds up what each core has counted now and then
    begin("after")
    assert peaks().memory < high - 150
    assert peaks().gpu_memory == 0


def test_a_child_counts_where_it_is_asked_for() -> None:
    begin("a child's")
    size = peaks().memory + 200
    code = f"held = bytearray({size} << 20); held[::4096] = b'1' * len(held[::4096]); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert peaks().memory < size <= peaks(children=True).memory
        child.communicate(b"\n")
