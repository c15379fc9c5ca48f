"""Knows how a process keeps the memory of its large tensors while it computes on the CPU."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

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
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    for option, value in _KEEPING.items():
        library.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _DEFAULTS.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
