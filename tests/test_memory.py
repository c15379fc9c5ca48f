"""Holds that memory is kept while tensors come and go, and given back after."""

import subprocess
import sys

import pytest

from vlcp_ray.memory import kept_memory

# A fresh interpreter: page faults and resident memory are those of the whole process.
_PROGRAM = """
import resource, numpy as np
from vlcp_ray.memory import kept_memory

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
