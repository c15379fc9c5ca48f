"""Knows how a run comes to its Ray: it joins the cluster it is on, or starts one on this machine."""

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import ray

from vlcp_ray.scale import Scale, derive
from vlcp_ray.settings import ConfigError

#: Slots of a local Ray beyond the cores. Slots are logical: the actors of one streaming plan hold the cores, and its
#: readers and writers, which mostly wait, need places beside them. Each slot that is used is a process to start.
_SLOTS_FOR_READERS: Final = 3

#: GiB of memory by the names of `ray.util.accelerators`, the smaller where a name has two.
_GPU_GIB: Final = {
    "T4": 16,
    "V100": 16,
    "A10G": 24,
    "L4": 24,
    "A100": 40,
    "A100-40G": 40,
    "A100-80G": 80,
    "L40S": 48,
    "H100": 80,
    "H200": 141,
    "B200": 180,
}
_KIND: Final = "accelerator_type:"

#: What a mounted store says while it is busy, full or out of reach; Ray Data knows the words of the object stores.
_PASSING: Final = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET)

_TALKATIVE: Final = ("ray.data", "ray.data._internal.progress", "ray.train", "ray._private.authentication")


@contextmanager
def joined(logs: bool = False) -> Iterator[Scale]:
    """Be connected to Ray: yield the scale that fits what it has, and end what was started here.

    A program that is connected already stays so. Where RAY_ADDRESS names a cluster (`ray job submit` sets it), that
    one is joined. Else a local Ray runs for as long as the work does.

    Args:
        logs: let Ray say all it says of itself, and what its workers print.

    Raises:
        ConfigError: no Ray answers at RAY_ADDRESS.
    """
    if not logs:
        _quiet()
    if ray.is_initialized():
        yield _scale(logs)
        return
    says = {"log_to_driver": logs, "logging_level": logging.INFO if logs else logging.WARNING}
    with _handler_kept():
        if address := os.environ.get("RAY_ADDRESS"):
            _join(address, says)
        else:
            _start_local(says)
    try:
        yield _scale(logs)
    finally:
        ray.shutdown()


def _join(address: str, says: Mapping[str, Any]) -> None:
    try:
        ray.init(**says)
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS {address}: no Ray takes this run in ({str(error).splitlines()[0]}); start or name another; "
            "where the cluster asks for a token set RAY_AUTH_MODE=token here, and unset RAY_ADDRESS to work locally"
        ) from error


def _start_local(says: Mapping[str, Any]) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray announces as its future default
    if not says["log_to_driver"]:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the C++ core tells users of its own open issues
    # Idle workers are for the next stage: a new process loads Ray Data and arrow for seconds before it works.
    os.environ.setdefault("RAY_num_workers_soft_limit", "16")
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    # Ray warns of more than four times as many workers as it starts at once, which is one for each core.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    with nullcontext() if says["log_to_driver"] else _core_unheard():
        ray.init(
            address="local",  # and no other that somebody has started on this machine
            num_cpus=_cores() + _SLOTS_FOR_READERS,
            include_dashboard=False,
            **says,
        )


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Ray puts a handler of SIGTERM in the place of the program's, which knows how to end in order."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _core_unheard() -> Iterator[None]:
    """Ray's C++ core announces the variable above on stderr; what goes wrong here comes as an exception."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _scale(logs: bool) -> Scale:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = logs
    context.retried_io_errors = [*context.retried_io_errors, *(f"Errno {code}" for code in _PASSING)]
    resources = ray.cluster_resources()
    local = len(ray.nodes()) == 1
    there = max(1, int(resources.get("CPU", 0)))  # a head without work has none, until the first machine comes
    return derive(min(there, _cores()) if local else there, int(resources.get("GPU", 0)), _smallest_gpu(resources))


def _smallest_gpu(resources: Mapping[str, float]) -> int:
    """GiB of memory of the smallest kind of GPU; of a kind that is not known, what every kind in use has."""
    kinds = [name.removeprefix(_KIND) for name in resources if name.startswith(_KIND)]
    return min((_GPU_GIB.get(kind, min(_GPU_GIB.values())) for kind in kinds), default=min(_GPU_GIB.values()))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quiet() -> None:
    """Leave the telling to `progress.py`, whose lines read well in a log; errors still come through."""
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
