"""Leases, with which at most one run at a time works on an artifact: a file of each run, with a heartbeat."""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from vlcp_ray.monitoring.progress import ProgressSnapshot, format_duration
from vlcp_ray.store.artifact import Artifact, Step, Store
from vlcp_ray.store.io import StoreError, retry

FOLDER: Final = "leases"
HEARTBEAT_INTERVAL: Final = 10.0  # seconds
_DEAD_AFTER: Final = 3.5 * HEARTBEAT_INTERVAL  # seconds without a heartbeat
_POLL_INTERVAL: Final = 0.5


@dataclass(frozen=True)
class Lease:
    """The lease of a run: the fingerprints that it makes, and its progress and age at the last heartbeat."""

    host: str
    pid: int
    since: str
    makes: frozenset[str]
    progress: ProgressSnapshot | None
    age: float  # seconds since the last heartbeat, by this machine's clock

    def __str__(self) -> str:
        run = f"a run (process {self.pid} on {self.host}, since {self.since})"
        if not self.is_alive:
            dead = f"had its last heartbeat {format_duration(self.age)} ago and is dead"
            return f"{run} {dead}; re-run the same command to resume"
        progress = f"{self.progress.title:<28} {self.progress}\n" if self.progress else ""
        return f"{progress}{run} makes these artifacts; last heartbeat {format_duration(self.age)} ago"

    @property
    def is_alive(self) -> bool:
        """Whether the last heartbeat is recent and, if the run is on this machine, its process exists."""
        return self.age <= _DEAD_AFTER and (self.host != socket.gethostname() or _process_exists(self.pid))


class LeaseConflictError(ValueError):
    """Another run is making one of the same artifacts."""


@contextmanager
def acquire_lease(
    store: Store, steps: Sequence[Step], progress: Callable[[], ProgressSnapshot | None] = lambda: None
) -> Iterator[None]:
    """Hold the only lease on these artifacts, and write the progress of the run into it with every heartbeat.

    A run first writes its lease to `<root>/leases` and then reads those of other runs. If one of them is alive and has
    an artifact in common, the run withdraws. Of two runs that start at the same moment both may withdraw, but never do
    both continue. A killed run leaves its lease. It is ignored if its process no longer exists on this machine, or, on
    another machine, if its heartbeat has stopped, which takes half a minute to detect.

    Raises:
        LeaseConflictError: another run makes one of the artifacts; the message names the run and the fix.
    """
    leases, name = _folder(store), f"{uuid.uuid4().hex}.json"
    makes = {step.fingerprint: step.title for step in steps}
    lease = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%d %b %H:%M:%S"), "makes": makes}
    _write(leases, name, lease, 0)
    ended = threading.Event()
    heartbeat = threading.Thread(target=_heartbeat, args=(leases, name, lease, progress, ended), daemon=True)
    heartbeat.start()
    try:
        _check_conflicts(leases, name, makes)
        yield
    finally:
        ended.set()
        heartbeat.join()
        _delete(leases, name)


def active_leases(store: Store) -> list[Lease]:
    """Read the leases under a root, of running and of killed runs; a run that ends deletes its own."""
    leases = _folder(store)
    contents = (_read(leases, path.rpartition("/")[2]) for path in leases.files("", ".json"))
    return [
        Lease(
            lease["host"],
            lease["pid"],
            lease["since"],
            frozenset(lease["makes"]),
            ProgressSnapshot(**lease["progress"]) if "progress" in lease else None,
            max(0.0, time.time() - lease.get("at", 0.0)),
        )
        for lease in contents
        if lease
    ]


def _folder(store: Store) -> Artifact:
    return Artifact(store.filesystem, f"{store.path}/{FOLDER}")


def _check_conflicts(leases: Artifact, name: str, makes: dict[str, str]) -> None:
    """Compare the artifacts of this run with the other leases, and delete those of dead runs."""
    for path in leases.files("", ".json"):
        other = path.rpartition("/")[2]
        lease = None if other == name else _read(leases, other)
        if lease is None or not (common := makes.keys() & lease["makes"].keys()):
            continue
        if _is_alive(leases, other, lease):
            title = next(title for fingerprint, title in makes.items() if fingerprint in common)
            raise LeaseConflictError(
                f"{title} is being made by another run (process {lease['pid']} on {lease['host']}, since "
                f"{lease['since']}): wait until it has ended, or end it, then re-run the same command to resume"
            )
        _delete(leases, other)


def _is_alive(leases: Artifact, name: str, lease: dict[str, Any]) -> bool:
    """Return whether the run of a lease is alive: its process exists, and its heartbeat changes."""
    if lease["host"] == socket.gethostname() and not _process_exists(lease["pid"]):
        return False
    print(
        f"another run may be alive (process {lease['pid']} on {lease['host']}): waiting for its heartbeat", flush=True
    )
    end = time.monotonic() + _DEAD_AFTER
    while time.monotonic() < end:
        time.sleep(_POLL_INTERVAL)
        current = _read(leases, name)
        if current is None:
            return False
        if current["beat"] != lease["beat"]:
            return True
    return False


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def _heartbeat(
    leases: Artifact,
    name: str,
    lease: dict[str, Any],
    progress: Callable[[], ProgressSnapshot | None],
    ended: threading.Event,
) -> None:
    beat = 0
    while not ended.wait(HEARTBEAT_INTERVAL):
        with suppress(StoreError):  # the next heartbeat tries again
            if _read(leases, name) is None:  # this process was suspended, and another run has deleted its lease
                print("\nthis run stops: its heartbeat had stopped, and another run makes its artifacts", flush=True)
                # A shell script starts its background commands with SIGINT ignored, and then SIGINT has no effect.
                ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                stop = signal.SIGTERM if ignored else signal.SIGINT
                signal.pthread_kill(threading.main_thread().ident or 0, stop)  # wakes the main thread where it waits
                return
            beat += 1
            snapshot = progress()
            _write(leases, name, lease | ({"progress": asdict(snapshot)} if snapshot else {}), beat)


def _write(leases: Artifact, name: str, lease: dict[str, Any], beat: int) -> None:
    leases.write_bytes(name, json.dumps({**lease, "beat": beat, "at": time.time()}).encode())


def _read(leases: Artifact, name: str) -> dict[str, Any] | None:
    content = leases.read_bytes(name)
    lease: dict[str, Any] | None = None if content is None else json.loads(content)
    return lease


def _delete(leases: Artifact, name: str) -> None:
    try:
        path = f"{leases.path}/{name}"
        retry(lambda: leases.filesystem.delete_file(path), f"delete {path}")
    except FileNotFoundError:  # another run has deleted it already
        return
