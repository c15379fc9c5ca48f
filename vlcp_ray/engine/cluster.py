"""Connect to Ray: join the cluster that RAY_ADDRESS names, or start a local one."""

import errno
import logging
import os
import secrets
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from vlcp_ray.cost.gpus import query_gpus
from vlcp_ray.engine import JOB_MARK
from vlcp_ray.engine.join import join
from vlcp_ray.engine.tasks import call_on_machines
from vlcp_ray.monitoring.progress import LOG, log_line
from vlcp_ray.scale import Scale, count_cores, derive
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.uris import redact

#: CPU slots of a local Ray beyond its cores. The actors of a streaming plan occupy one slot per core; its readers and
#: writers, which mostly wait, need slots of their own. Each slot in use is a process that takes seconds to start.
_SLOTS_FOR_READERS: Final = 3

#: The value of RAY_ADDRESS, and of `ray.init`, that starts a Ray.
_LOCAL: Final = "local"
#: Where Ray keeps its objects on Linux, and the size from which it does.
SHM: Final = Path("/dev/shm")  # noqa: S108
_MIN_SHM: Final = 2**30

#: Errors of a mounted store that is busy, full or out of reach; those of object stores are in Ray Data's own list.
_TRANSIENT: Final = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET)

#: Actors of a pool that may fail one after the other while they load a model, and are replaced, as those on a machine
#: that is taken or whose GPU is broken. By default the first one ends the plan, which is right on a single machine.
_INIT_DEATHS: Final = 20

_NOISY_LOGGERS: Final = ("ray.data", "ray.data._internal.progress", "ray.train", "ray._private.authentication")


@contextmanager
def connect(logs: bool = False) -> Iterator[Scale]:
    """Connect to Ray, yield the scale that fits its devices, and disconnect at the end.

    An existing connection is kept. Where RAY_ADDRESS names a cluster (`ray job submit` sets it), that cluster is
    joined. Else a local Ray is started, which ends with the context.

    Args:
        logs: show the messages of Ray and what its workers print.

    Raises:
        ConfigError: no Ray answers at RAY_ADDRESS, its workers run another environment, or none starts here.
    """
    if not logs:
        _silence_loggers()
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the C++ core logs warnings that users cannot act on
    if ray.is_initialized():
        _configure_ray_data(logs)
        yield _derive_scale()
        return
    options = {"log_to_driver": logs, "logging_level": logging.INFO if logs else logging.WARNING}
    address = joined_address()
    if address is None:
        _log_slow_storage()
    with nullcontext() if logs else _log_errors():
        try:
            with _keep_sigterm_handler(), _public_entrypoint(), nullcontext() if logs else _silence_stderr():
                if address is None:
                    _start_local(options)
                else:
                    join(address, options, check_environment=JOB_MARK not in os.environ)
            _configure_ray_data(logs)
            yield _derive_scale()
        finally:
            ray.shutdown()


def joined_address() -> str | None:
    """Return the address of the cluster that RAY_ADDRESS names, or None where a local Ray is to be started."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", _LOCAL) else address


def _start_local(options: Mapping[str, Any]) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the future default, according to Ray
    # Idle workers are kept for the next stage: a new process needs seconds to load Ray Data and arrow.
    os.environ.setdefault("RAY_num_workers_soft_limit", "16")
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    # Ray warns of more workers than four times the number that it starts at once, by default one per core.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    # The ranks of a training listen on loopback, where gloo also finds this machine if its name has no address.
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # A token of this process. Without one Ray writes ~/.ray/auth_token, readable by all users, and from then on
    # `ray start` asks every client for it.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # For workers with variables of their own Ray writes the path of Python into a command of bash as it is.
    quoted = shlex.quote(sys.executable)
    environment = {"py_executable": quoted} if quoted != sys.executable else None
    try:
        with _on_loopback():
            ray.init(
                address=_LOCAL,  # not one that somebody else has started on this machine
                num_cpus=count_cores() + _SLOTS_FOR_READERS,
                include_dashboard=False,
                runtime_env=environment,
                _node_ip_address="127.0.0.1",
                **options,
            )
    except (OSError, ValueError) as error:
        raise ConfigError(_start_error(error)) from error


def _log_slow_storage() -> None:
    """Say that Ray keeps its objects on disk, which it does where the shared memory of a container is small."""
    if SHM.is_dir() and (size := shutil.disk_usage(SHM).total) < _MIN_SHM:
        log_line(
            "scale",
            f"{SHM} has {size / 2**30:.1f} GiB, so Ray keeps its objects on disk, which is slow: start the container "
            "with a larger --shm-size",
        )


def _start_error(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "AF_UNIX path length" in text:
        name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        return (
            f"{name} {os.environ.get(name, '')}: too long for Ray, whose sockets lie below it and have at most 107 "
            f"bytes in their paths; set a shorter one, as RAY_TMPDIR=/tmp"
        )
    if "object store memory" in text:
        return f"Ray does not start: {text}; free memory, or give the machine or container more (8 GiB or more)"
    return f"Ray does not start: {text}; see `vlcp-ray doctor`"


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that starts listen on 127.0.0.1 only.

    Ray 2.60 does so where clusters are disabled, by default on macOS and Windows. Otherwise it replaces 127.0.0.1 by
    the address of the machine, and its metrics, which ask for no token, listen on all interfaces.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _log_errors() -> Iterator[None]:
    """Write what Ray reports of failed tasks and machines to the log of the stage; by default it is printed."""

    def log(data: Mapping[str, Any], **_: Any) -> None:
        LOG.info("Ray: %s", "\n".join(data["lines"]))

    before, ray_worker.print_to_stdstream = ray_worker.print_to_stdstream, log
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = before


@contextmanager
def _public_entrypoint() -> Iterator[None]:
    """Give Ray this process's command line without secrets: it is kept by the cluster and shown in its dashboard."""
    before = ray_utils.get_entrypoint_name
    ray_utils.get_entrypoint_name = lambda: redact(before())
    try:
        yield
    finally:
        ray_utils.get_entrypoint_name = before


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
    added = [f"Errno {code}" for code in _TRANSIENT]
    context.retried_io_errors = [*(text for text in context.retried_io_errors if text not in added), *added]
    if joined_address():
        context.max_consecutive_actor_init_deaths = _INIT_DEATHS


def _derive_scale() -> Scale:
    resources = ray.cluster_resources()
    local = len(ray.nodes()) == 1
    cpus = max(1, int(resources.get("CPU", 0)))  # a head without work has none until a worker joins
    gpus = int(resources.get("GPU", 0))
    return derive(min(cpus, count_cores()) if local else cpus, gpus, _smallest_gpu(local) if gpus else None)


def _smallest_gpu(local: bool) -> float | None:
    """Return the GiB of memory of the smallest GPU, from the drivers of all machines; None where none knows.

    Ray's own names for kinds leave out the size.
    """
    answers = [query_gpus()] if local else [gpus for _, gpus in call_on_machines(query_gpus)]
    return min((gib for gpus in answers for _, gib in gpus), default=None)


def _silence_loggers() -> None:
    """Hide Ray's progress messages, which those of `monitoring.progress` replace.

    An error is raised, told in one sentence and logged in full; Ray Data prints its stack twice before.
    """
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "ray.data" else logging.ERROR)
