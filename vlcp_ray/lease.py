"""Knows that one run at a time works on an artifact: a run says in the store what it makes, and looks who else does."""

import _thread
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from vlcp_ray.progress import Reading, span
from vlcp_ray.store import Artifact, Step, Store, StoreError, patiently

FOLDER: Final = "leases"
BEAT: Final = 10.0  # seconds between the signs of life of a run
_DEAD_AFTER: Final = 3.5 * BEAT  # seconds without one
_LOOK: Final = 0.5


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a run: the fingerprints that it makes, how far it was, and how long ago that was."""

    host: str
    pid: int
    since: str
    makes: frozenset[str]
    reading: Reading | None
    age: float  # seconds, by this machine's clock

    def __str__(self) -> str:
        run = f"a run (process {self.pid} on {self.host}, since {self.since})"
        if not self.fresh:
            return f"{run} gave its last sign of life {span(self.age)} ago and is dead; the same command goes on"
        far = f"{self.reading.title:<28} {self.reading}\n" if self.reading else ""
        return f"{far}{run} makes this; this is what it said {span(self.age)} ago"

    @property
    def fresh(self) -> bool:
        return self.age <= _DEAD_AFTER and (self.host != socket.gethostname() or _is_process(self.pid))


class HeldError(ValueError):
    """Another run is making what this one wants to make."""


@contextmanager
def held(store: Store, steps: Sequence[Step], reading: Callable[[], Reading | None] = lambda: None) -> Iterator[None]:
    """Be the only run that makes these artifacts, and say with every sign of life how far it is.

    The run first writes what it makes to `<root>/leases` and then looks at the others there. Whoever sees a living one
    that makes some of the same withdraws, so two that start in the same moment may both, and never go on both. A run
    that was killed leaves its lease: its process is gone from this machine, or, where it ran elsewhere, its lease
    does not change any more, which takes half a minute to see.

    Raises:
        HeldError: another run makes one of them; says which run and what to do.
    """
    leases, name = Artifact(store.filesystem, f"{store.path}/{FOLDER}"), f"{uuid.uuid4().hex}.json"
    mine = {step.fingerprint: step.title for step in steps}
    lease = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%d %b %H:%M:%S"), "makes": mine}
    _write(leases, name, lease, 0)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(leases, name, lease, reading, ended), daemon=True)
    beating.start()
    try:
        _refuse_others(leases, name, mine)
        yield
    finally:
        ended.set()
        beating.join()
        _delete(leases, name)


def signs(store: Store) -> list[Sign]:
    """The last signs of life of all runs on a root; those that ended in order have left none."""
    leases = Artifact(store.filesystem, f"{store.path}/{FOLDER}")
    found = (_read(leases, path.rpartition("/")[2]) for path in leases.files("", ".json"))
    return [
        Sign(
            lease["host"],
            lease["pid"],
            lease["since"],
            frozenset(lease["makes"]),
            Reading(**lease["reading"]) if "reading" in lease else None,
            max(0.0, time.time() - lease.get("at", 0.0)),
        )
        for lease in found
        if lease
    ]


def _refuse_others(leases: Artifact, name: str, mine: dict[str, str]) -> None:
    for path in leases.files("", ".json"):
        other = path.rpartition("/")[2]
        lease = None if other == name else _read(leases, other)
        if lease is None or not (both := mine.keys() & lease["makes"].keys()):
            continue
        if _lives(leases, other, lease):
            title = next(title for fingerprint, title in mine.items() if fingerprint in both)
            raise HeldError(
                f"{title} is being made by another run (process {lease['pid']} on {lease['host']}, since "
                f"{lease['since']}): wait until it has ended, or end it; the same command then goes on from there"
            )
        _delete(leases, other)


def _lives(leases: Artifact, name: str, lease: dict[str, Any]) -> bool:
    """Whether the run that wrote a lease is at work: the lease goes on changing."""
    if lease["host"] == socket.gethostname() and not _is_process(lease["pid"]):
        return False
    print(f"another run may be at work (process {lease['pid']} on {lease['host']}): looking if it lives", flush=True)
    end = time.monotonic() + _DEAD_AFTER
    while time.monotonic() < end:
        time.sleep(_LOOK)
        now = _read(leases, name)
        if now is None:
            return False
        if now["beat"] != lease["beat"]:
            return True
    return False


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _beat(
    leases: Artifact, name: str, lease: dict[str, Any], reading: Callable[[], Reading | None], ended: threading.Event
) -> None:
    beat = 0
    while not ended.wait(BEAT):
        with suppress(StoreError):  # the next beat asks again, and sees whether another run has come meanwhile
            if _read(leases, name) is None:  # this process slept too long, and another run has taken over
                print("\nanother run has taken over, as this one gave no sign of life", flush=True)
                _thread.interrupt_main()
                return
            beat += 1
            now = reading()
            _write(leases, name, lease | ({"reading": asdict(now)} if now else {}), beat)


def _write(leases: Artifact, name: str, lease: dict[str, Any], beat: int) -> None:
    leases.write_bytes(name, json.dumps({**lease, "beat": beat, "at": time.time()}).encode())


def _read(leases: Artifact, name: str) -> dict[str, Any] | None:
    content = leases.read_bytes(name)
    lease: dict[str, Any] | None = None if content is None else json.loads(content)
    return lease


def _delete(leases: Artifact, name: str) -> None:
    try:
        path = f"{leases.path}/{name}"
        patiently(lambda: leases.filesystem.delete_file(path), f"delete {path}")
    except FileNotFoundError:  # another run has taken over, or removed this one's after it was killed
        return
