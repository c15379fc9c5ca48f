"""Let a process keep freed memory for its next large tensor on the CPU (glibc only)."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

# Options of mallopt(3) with their default values: trim threshold, top padding, maximum number of mmap blocks.
_DEFAULTS: Final = {-1: 128 * 1024, -2: 128 * 1024, -4: 65536}
_RETAINING: Final = {-1: 2**31 - 1, -2: 64 * 2**20, -4: 0}


@contextmanager
def memory_retained() -> Iterator[None]:
    """Keep freed memory in the process for the next tensor, and return it to the system at the end.

    By default the C library requests every block of over 32 MB from the kernel and returns it when it is freed, so that
    each operation on large activations faults its pages in again. A training step of ConvNet-6 at 224 pixels spends
    half of its time on that (47 instead of 107 images/s on one core), one of ConvNet-3 at 32 pixels a third (1,500
    instead of 2,550). Results do not change. Only glibc has these options; elsewhere nothing happens.
    """
    retain_memory()
    try:
        yield
    finally:
        if library := _glibc():
            for option, value in _DEFAULTS.items():
                library.mallopt(option, value)
            library.malloc_trim(0)


def retain_memory() -> None:
    """Keep freed memory until the process ends, for processes that do only one kind of work."""
    if library := _glibc():
        for option, value in _RETAINING.items():
            library.mallopt(option, value)


def _glibc() -> Any:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
