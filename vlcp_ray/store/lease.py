"""Leases, with which at most one run at a time works on an artifact: a file of each run, with a heartbeat."""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter

from vlcp_ray.monitoring.printable import printable
from vlcp_ray.monitoring.progress import ProgressSnapshot, format_duration
from vlcp_ray.store import files
from vlcp_ray.store.artifact import Artifact, Step, Store
from vlcp_ray.store.files import File
from vlcp_ray.store.io import StoreError, retry
from vlcp_ray.store.uris import redact

FOLDER: Final = "leases"
HEARTBEAT_INTERVAL: Final = 10.0  # seconds
#: A run that could not write a heartbeat for this time begins to stop. An outage of the store is survived up to it.
_STOP_AFTER: Final = 60.0
_EXIT_AFTER: Final = 75.0  # and its process ends here at the latest,
_DEAD_AFTER: Final = 90.0  # before another run takes its artifacts here. Ray ends the workers of a process that ends.
_POLL_INTERVAL: Final = 0.5
_RETRY_INTERVAL: Final = 1.0
#: Of a request of a heartbeat: one that a store loses must not cost the lease.
_REQUEST_TIMEOUT: Final = 8.0
#: The file that exists while a run compares its lease with those of others, which takes a second or two.
_LOCK: Final = "lock"
_LOCK_DEAD_AFTER: Final = 30.0
_PROGRESS: Final = TypeAdapter(ProgressSnapshot)


class _Content(BaseModel):
    """The content of a lease's file.

    Args:
        makes: the title of each artifact that it makes or deletes, by fingerprint.
        reads: the fingerprints of the complete artifacts that it needs.
        deletes: whether it deletes artifacts.
        beat: the number of the heartbeat, and `at` its time.
        progress: the fields of a `ProgressSnapshot`, which versions before and after this one may not have.
    """

    model_config = ConfigDict(strict=True)

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    since: str
    makes: dict[str, str]
    beat: int
    reads: list[str] = []
    deletes: bool = False
    at: FiniteFloat = 0.0
    progress: Any = None

    def __str__(self) -> str:
        return printable(f"process {self.pid} on {self.host}, since {self.since}")


@dataclass(frozen=True)
class Lease:
    """The lease of a run: the fingerprints that it makes or reads, and its progress and age at the last heartbeat."""

    host: str
    pid: int
    since: str
    makes: frozenset[str]
    progress: ProgressSnapshot | None
    age: float  # seconds since the last heartbeat, by this machine's clock
    reads: frozenset[str] = frozenset()

    def __str__(self) -> str:
        run = printable(f"a run (process {self.pid} on {self.host}, since {self.since})")
        if not self.is_alive:
            dead = f"had its last heartbeat {format_duration(self.age)} ago and is dead"
            return f"{run} {dead}; re-run the same command to resume"
        progress = printable(f"{self.progress.title:<28} {self.progress}") + "\n" if self.progress else ""
        return f"{progress}{run} makes these artifacts; last heartbeat {format_duration(self.age)} ago"

    @property
    def is_alive(self) -> bool:
        """Whether the last heartbeat is recent and, if the run is on this machine, its process exists."""
        return self.age <= _DEAD_AFTER and (self.host != socket.gethostname() or _process_exists(self.pid))


class LeaseConflictError(ValueError):
    """Another run is making one of the same artifacts."""


@contextmanager
def acquire_lease(
    store: Store,
    steps: Sequence[Step],
    progress: Callable[[], ProgressSnapshot | None] = lambda: None,
    reads: Sequence[Step] = (),
) -> Iterator[None]:
    """Hold the only lease on these artifacts, and write the progress of the run into it with every heartbeat.

    A run writes its lease to `<root>/leases` and then reads those of other runs. If one of them is alive and has an
    artifact in common, the run withdraws. It does so while it holds a lock, a file that only one run can create, so
    that of two runs that start at the same moment one continues. On stores that cannot refuse to overwrite a file both
    may withdraw, but never do both continue.

    A killed run leaves its lease. It is ignored if its process no longer exists on this machine, or, on another
    machine, if its heartbeat has not changed for 90 s. A run that cannot write its heartbeat, because its store is out
    of reach or it was suspended, stops after 60 s: before another run may start.

    Args:
        reads: complete artifacts that the run needs: nobody may delete them.

    Raises:
        LeaseConflictError: another run makes one of the artifacts, or one of those that are needed is being deleted;
            the message names the run and the fix.
    """
    makes = {step.fingerprint: step.title for step in steps}
    with _hold(store, {"makes": makes, "reads": [step.fingerprint for step in reads]}, progress):
        yield


@contextmanager
def acquire_deletion(store: Store, titles: Mapping[str, str]) -> Iterator[None]:
    """Hold the only lease on artifacts that are deleted: no run makes or needs them.

    Args:
        titles: by fingerprint.

    Raises:
        LeaseConflictError: a run makes or needs one of them.
    """
    with _hold(store, {"makes": dict(titles), "deletes": True}, lambda: None):
        yield


@contextmanager
def _hold(store: Store, content: Mapping[str, Any], progress: Callable[[], ProgressSnapshot | None]) -> Iterator[None]:
    leases, name = _folder(store), f"{uuid.uuid4().hex}.json"
    lease = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%d %b %H:%M:%S"), **content}
    _take(leases, name, lease)
    heartbeat = _Heartbeat(leases, name, lease, progress)
    heartbeat.start()
    try:
        yield
    finally:
        heartbeat.stop()
        try:
            with suppress(StoreError), files.requests_within(_REQUEST_TIMEOUT):
                _delete(leases, name)  # where the store is out of reach, others see that there is no heartbeat
        finally:
            heartbeat.left.set()


def active_leases(store: Store) -> list[Lease]:
    """Read the leases under a root, of running and of killed runs; a run that ends deletes its own.

    Other files, which no run has written, are left out.
    """
    leases = _folder(store)
    contents = (_read(leases, file.name) for file in leases.files(suffix=".json"))
    return [
        Lease(
            lease.host,
            lease.pid,
            lease.since,
            frozenset(lease.makes),
            _parse_progress(lease.progress),
            max(0.0, time.time() - lease.at),
            frozenset(lease.reads),
        )
        for lease in contents
        if lease
    ]


def _parse_progress(fields: Any) -> ProgressSnapshot | None:
    """Return the progress in a lease, or None where there is none that can be shown."""
    try:
        progress = _PROGRESS.validate_python(fields)
        str(progress)
    except (ValueError, ArithmeticError):
        return None
    return progress


def _folder(store: Store) -> Artifact:
    return Artifact(store.filesystem, f"{store.path}/{FOLDER}")


def _take(leases: Artifact, name: str, lease: Mapping[str, Any]) -> None:
    """Write the lease, unless another run that is alive has one of the artifacts; delete the leases of dead runs."""
    mine = _Content.model_validate({**lease, "beat": 0})
    while True:
        with _lock(leases):
            _write(leases, name, lease, 0)
            conflict = _find_conflict(leases, name, mine)
            if conflict is None:
                return
            _delete(leases, name)
        other, content = conflict
        if _is_alive(leases, other, content):
            shared = min(_shared(mine, content))
            title = mine.makes.get(shared) or content.makes[shared]
            does = "deleted" if content.deletes else "made" if shared in content.makes else "read"
            raise LeaseConflictError(
                f"{title} is being {does} by another run ({content}): wait until it has ended, or end it, then re-run "
                "the same command to resume"
            )
        _delete(leases, other)


def _find_conflict(leases: Artifact, name: str, mine: _Content) -> tuple[str, _Content] | None:
    """Find another lease with an artifact in common: its name and its content."""
    for other in (file.name for file in leases.files(suffix=".json")):
        content = None if other == name else _read(leases, other)
        if content is not None and _shared(mine, content):
            return other, content
    return None


def _shared(one: _Content, other: _Content) -> set[str]:
    """Return the fingerprints of the artifacts that two runs cannot have both: read ones may be, but not deleted."""
    shared = one.makes.keys() & other.makes.keys()
    if one.deletes:
        shared |= one.makes.keys() & set(other.reads)
    if other.deletes:
        shared |= other.makes.keys() & set(one.reads)
    return shared


@contextmanager
def _lock(leases: Artifact) -> Iterator[None]:
    """Hold the lock of the leases. A lock that does not change for 30 s was left by a killed run, and is deleted."""
    path, content = f"{leases.path}/{_LOCK}", uuid.uuid4().hex.encode()
    seen, since = b"", time.monotonic()
    while not retry(lambda: files.create(leases.filesystem, path, content), f"write {path}"):
        current = leases.read_bytes(_LOCK) or b""
        if current == content:  # an attempt that failed had written it all the same
            break
        if current != seen:
            seen, since = current, time.monotonic()
        elif time.monotonic() - since > _LOCK_DEAD_AFTER:
            _delete(leases, _LOCK)
        time.sleep(_POLL_INTERVAL)
    try:
        yield
    finally:
        _delete(leases, _LOCK)


def _is_alive(leases: Artifact, name: str, lease: _Content) -> bool:
    """Return whether the run of a lease is alive: its process exists, and its heartbeat changes."""
    if lease.host == socket.gethostname() and not _process_exists(lease.pid):
        return False
    print(f"another run may be alive ({lease}): waiting for its heartbeat", flush=True)
    end = time.monotonic() + _DEAD_AFTER
    while time.monotonic() < end:
        time.sleep(_POLL_INTERVAL)
        current = _read(leases, name)
        if current is None:
            return False
        if current.beat != lease.beat:
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


class _Heartbeat:
    """Write the heartbeat of a run in one thread, and stop the run from another where that fails for too long."""

    def __init__(
        self,
        leases: Artifact,
        name: str,
        lease: Mapping[str, Any],
        progress: Callable[[], ProgressSnapshot | None],
    ) -> None:
        self.leases, self.name, self.lease, self.progress = leases, name, lease, progress
        self.ended, self.left, self.last = threading.Event(), threading.Event(), time.monotonic()
        self.error = ""  # of the last heartbeat that failed
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Start both threads."""
        self.writer.start()
        self.watcher.start()

    def stop(self) -> None:
        """End the heartbeat; a request that is under way ends first, or is given up after a while."""
        self.ended.set()
        self.writer.join(_STOP_AFTER)

    def _write(self) -> None:
        with files.requests_within(_REQUEST_TIMEOUT):
            self._write_until_ended()

    def _write_until_ended(self) -> None:
        beat, path, wait = 0, f"{self.leases.path}/{self.name}", HEARTBEAT_INTERVAL
        while not self.ended.wait(wait):
            start, wait = time.monotonic(), HEARTBEAT_INTERVAL
            try:
                files.read(self.leases.filesystem, path)
                beat += 1
                snapshot = self.progress()
                more = {"progress": asdict(snapshot)} if snapshot else {}
                files.write(self.leases.filesystem, path, _encode({**self.lease, **more}, beat))
                self.last = start
            except FileNotFoundError:
                self._interrupt("another run has deleted its lease, because its heartbeat had stopped")
                return
            except Exception as error:  # each storage driver has its own errors
                self.error = " ".join(str(error).split())
                wait = _RETRY_INTERVAL  # often, and not ever more seldom: a store may come back for seconds only

    def _watch(self) -> None:
        while not self.ended.wait(_POLL_INTERVAL):
            if time.monotonic() - self.last > _STOP_AFTER:
                why = f" ({self.error})" if self.error else ""
                self._interrupt(
                    f"its lease could not be renewed for {_STOP_AFTER:.0f} s, and another run may start{why}"
                )
                if not self.left.wait(_EXIT_AFTER - _STOP_AFTER):
                    os._exit(1)  # the main thread waits in a library, or for the store
                return

    def _interrupt(self, reason: str) -> None:
        print(printable(redact(f"\nthis run stops: {reason}"), keep="\n"), flush=True)
        # A shell script starts its background commands with SIGINT ignored, and then SIGINT has no effect.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        stop = signal.SIGTERM if ignored else signal.SIGINT
        signal.pthread_kill(threading.main_thread().ident or 0, stop)  # wakes the main thread where it waits


def _write(leases: Artifact, name: str, lease: Mapping[str, Any], beat: int) -> None:
    leases.write_bytes(name, _encode(lease, beat))


def _encode(lease: Mapping[str, Any], beat: int) -> bytes:
    return json.dumps({**lease, "beat": beat, "at": time.time()}).encode()


def _read(leases: Artifact, name: str) -> _Content | None:
    """Read a lease, or return None where there is none: no file, or one that no run has written."""
    content = leases.read_bytes(name)
    try:
        return None if content is None else _Content.model_validate(json.loads(content))
    except (ValueError, RecursionError):
        return None


def _delete(leases: Artifact, name: str) -> None:
    leases.delete_files([File(f"{leases.path}/{name}", 0)])
