"""Connect to Ray: join the cluster that RAY_ADDRESS names, or start a local one."""

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

from vlcp_ray.scale import Scale, count_cores, derive
from vlcp_ray.settings import ConfigError

#: CPU slots of a local Ray beyond its cores. The actors of a streaming plan occupy one slot per core; its readers and
#: writers, which mostly wait, need slots of their own. Each slot in use is a process that takes seconds to start.
_SLOTS_FOR_READERS: Final = 3

#: GiB of memory by the names of `ray.util.accelerators`; the smaller size where a name has two.
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
_ACCELERATOR: Final = "accelerator_type:"

#: Errors of a mounted store that is busy, full or out of reach; those of object stores are in Ray Data's own list.
_TRANSIENT: Final = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET)

_NOISY_LOGGERS: Final = ("ray.data", "ray.data._internal.progress", "ray.train", "ray._private.authentication")


@contextmanager
def connect(logs: bool = False) -> Iterator[Scale]:
    """Connect to Ray, yield the scale that fits its devices, and disconnect at the end.

    An existing connection is kept. Where RAY_ADDRESS names a cluster (`ray job submit` sets it), that cluster is
    joined. Else a local Ray is started, which ends with the context.

    Args:
        logs: show the messages of Ray and what its workers print.

    Raises:
        ConfigError: no Ray answers at RAY_ADDRESS.
    """
    if not logs:
        _silence_loggers()
    if ray.is_initialized():
        _configure_ray_data(logs)
        yield _derive_scale()
        return
    options = {"log_to_driver": logs, "logging_level": logging.INFO if logs else logging.WARNING}
    with _keep_sigterm_handler():
        if address := os.environ.get("RAY_ADDRESS"):
            _join_cluster(address, options)
        else:
            _start_local(options)
    try:
        _configure_ray_data(logs)
        yield _derive_scale()
    finally:
        ray.shutdown()


def _join_cluster(address: str, options: Mapping[str, Any]) -> None:
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS {address}: cannot connect to Ray ({str(error).splitlines()[0]}); start one or name another; "
            "where it requires a token set RAY_AUTH_MODE=token here, and unset RAY_ADDRESS to run locally"
        ) from error


def _start_local(options: Mapping[str, Any]) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the future default, according to Ray
    if not options["log_to_driver"]:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the C++ core logs warnings that users cannot act on
    # Idle workers are kept for the next stage: a new process needs seconds to load Ray Data and arrow.
    os.environ.setdefault("RAY_num_workers_soft_limit", "16")
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    # Ray warns of more workers than four times the number that it starts at once, by default one per core.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    with nullcontext() if options["log_to_driver"] else _silence_stderr():
        ray.init(
            address="local",  # not one that somebody else has started on this machine
            num_cpus=count_cores() + _SLOTS_FOR_READERS,
            include_dashboard=False,
            **options,
        )


@contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces by its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discard stderr: Ray's C++ core prints the value of RAY_BACKEND_LOG_LEVEL there, and errors are exceptions."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _configure_ray_data(logs: bool) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = logs
    context.retried_io_errors = [*context.retried_io_errors, *(f"Errno {code}" for code in _TRANSIENT)]


def _derive_scale() -> Scale:
    resources = ray.cluster_resources()
    local = len(ray.nodes()) == 1
    cpus = max(1, int(resources.get("CPU", 0)))  # a head without work has none until a worker joins
    return derive(min(cpus, count_cores()) if local else cpus, int(resources.get("GPU", 0)), _smallest_gpu(resources))


def _smallest_gpu(resources: Mapping[str, float]) -> int:
    """GiB of memory of the smallest GPU; a GPU of unknown kind counts as the smallest known one."""
    kinds = [name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR)]
    return min((_GPU_GIB.get(kind, min(_GPU_GIB.values())) for kind in kinds), default=min(_GPU_GIB.values()))


def _silence_loggers() -> None:
    """Hide Ray's progress messages, which those of `monitoring.progress` replace; errors are still shown."""
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
