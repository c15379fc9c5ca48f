"""Tests of the allocator: freed memory is kept in the context and returned after it."""

import subprocess
import sys

import pytest

from vlcp_ray.monitoring.allocator import memory_retained

# A fresh interpreter: page faults and resident memory are those of the whole process.
_PROGRAM = """
import resource, numpy as np
from vlcp_ray.monitoring.allocator import memory_retained

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(20_000_000)  # 160 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults(1)
start = resident()
with memory_retained():
    faults(1)
    kept = faults(5)
    within = resident()
print(kept, faults(5), within - start, resident() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults of glibc")
def test_memory_retained_keeps_freed_memory_and_returns_it_after() -> None:
    output = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout
    faults_within, faults_after, resident_within, resident_after = map(int, output.split())
    assert faults_after > 500
    assert faults_within < faults_after / 10
    assert resident_within > 150_000_000
    assert resident_after < 50_000_000


def test_memory_retained_passes_errors_on() -> None:
    with pytest.raises(ValueError, match="mine"), memory_retained():
        raise ValueError("mine")
