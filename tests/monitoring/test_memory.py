"""Tests of measuring peak memory."""

import mmap
import resource
import subprocess
import sys

import pyarrow as pa
import pytest

from vlcp_ray.monitoring.memory import limit_growth, measure_peaks, reset_peaks


def test_measure_peaks_after_reset_is_that_of_the_new_work() -> None:
    reset_peaks("before")
    before = measure_peaks().memory
    with mmap.mmap(-1, 200 << 20) as held:  # new pages, even if the C library has kept memory of other tests
        held[:: 1 << 12] = b"1" * (200 << 8)
        high = measure_peaks().memory
    assert 190 < high - before < 400
    reset_peaks("before")  # the same work: no reset
    assert abs(measure_peaks().memory - high) < 30  # the kernel adds up the counts of the cores with a delay
    reset_peaks("after")
    assert measure_peaks().memory < high - 150
    assert measure_peaks().gpu_memory == 0


def test_measure_peaks_with_children_counts_them() -> None:
    reset_peaks("a child's")
    size = measure_peaks().memory + 200
    code = f"held = bytearray({size} << 20); held[::4096] = b'1' * len(held[::4096]); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert measure_peaks().memory < size <= measure_peaks(children=True).memory
        child.communicate(b"\n")


def test_limit_growth_refuses_what_is_larger_and_restores_the_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limit_growth(1 << 30):
        assert len(pa.allocate_buffer(100 << 20)) == 100 << 20
        with pytest.raises(MemoryError):
            pa.allocate_buffer(8 << 30)
        with pytest.raises(MemoryError):
            bytearray(2 << 30)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with pytest.raises(OSError, match="damaged"), limit_growth(1 << 30):
        raise OSError("damaged")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(bytearray(2 << 30)) == 2 << 30
