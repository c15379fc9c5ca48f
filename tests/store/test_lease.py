"""Tests of the lease: two runs never make the same artifact at once, and a dead run does not block others."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tenacity

from tests.s3 import Proxy
from vlcp_ray.monitoring.progress import ProgressSnapshot
from vlcp_ray.store import files, io, lease
from vlcp_ray.store.artifact import Step, Store
from vlcp_ray.store.io import open_uri
from vlcp_ray.store.lease import LeaseConflictError, acquire_lease, active_leases

ONE, OTHER = Step("pair", 1, {"a": 1}), Step("pair", 1, {"a": 2})
SNAPSHOT = ProgressSnapshot("pair", [ONE.fingerprint], 640, 1297, "rows", 2, 35.0, "caption 1 x 1 GPU", "")
LEASE = {"host": "elsewhere", "pid": 1, "since": "1 Jan", "makes": {ONE.fingerprint: "pair"}, "beat": 7}
#: Files that no run has written, with the name of a lease.
NO_LEASES = {
    "cut": b'{"host": "els',
    "not utf-8": b"\xff\xfe\xfd",
    "nested": b"[" * 100_000,
    "a list": b"[]",
    "a number": b"1",
    "no field": b"{}",
    "makes of a list": json.dumps(LEASE | {"makes": [ONE.fingerprint]}).encode(),
    "pid in words": json.dumps(LEASE | {"pid": "one"}).encode(),
    "pid too large": json.dumps(LEASE | {"pid": 2**70}).encode(),
    "no heartbeat": json.dumps({name: value for name, value in LEASE.items() if name != "beat"}).encode(),
    "time without end": json.dumps(LEASE | {"at": float("inf")}).encode(),
}


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_INTERVAL", 0.1)
    monkeypatch.setattr(lease, "_STOP_AFTER", 1.0)
    monkeypatch.setattr(lease, "_EXIT_AFTER", 200.0)
    monkeypatch.setattr(lease, "_DEAD_AFTER", 2.0)
    monkeypatch.setattr(lease, "_LOCK_DEAD_AFTER", 0.5)
    monkeypatch.setattr(lease, "_POLL_INTERVAL", 0.02)


def leases(root: Path) -> list[Path]:
    return sorted((root / "leases").glob("*.json"))


def write_lease(root: Path, pid: int, host: str = "elsewhere", **changes: Any) -> None:
    """Write the lease of a run that was killed while it made ONE."""
    (root / "leases").mkdir(parents=True)
    content = json.dumps(LEASE | {"host": host, "pid": pid} | changes)
    (root / "leases" / "killed.json").write_text(content)


def test_acquire_lease_of_the_same_artifact_names_the_other_run(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    with acquire_lease(store, [ONE]):
        with (
            pytest.raises(LeaseConflictError, match=r"pair is being made by another run .*re-run the same command"),
            acquire_lease(store, [OTHER, ONE]),
        ):
            raise AssertionError("both run")
        assert len(leases(tmp_path)) == 1
    assert leases(tmp_path) == []


def test_acquire_lease_of_different_artifacts_succeeds(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    with acquire_lease(store, [ONE]), acquire_lease(store, [OTHER]):
        assert len(leases(tmp_path)) == 2
    assert leases(tmp_path) == []


def test_acquire_lease_after_a_killed_process_succeeds_at_once(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_lease(tmp_path, ended.pid, socket.gethostname())
    with acquire_lease(Store.at(str(tmp_path)), [ONE]):
        assert len(leases(tmp_path)) == 1


def test_acquire_lease_without_heartbeat_elsewhere_succeeds(tmp_path: Path) -> None:
    write_lease(tmp_path, 1)
    with acquire_lease(Store.at(str(tmp_path)), [ONE]):
        assert "killed.json" not in {path.name for path in leases(tmp_path)}


def test_acquire_lease_after_an_error_deletes_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), acquire_lease(Store.at(str(tmp_path)), [ONE]):
        raise RuntimeError
    assert leases(tmp_path) == []


def test_acquire_lease_takes_the_lock_of_a_killed_run(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "lock").write_text("left")
    with acquire_lease(Store.at(str(tmp_path)), [ONE]):
        assert [path.name for path in (tmp_path / "leases").iterdir()] == [path.name for path in leases(tmp_path)]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_acquire_lease_by_six_threads_lets_one_run(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    running, maximum, lock, gate = 0, 0, threading.Lock(), threading.Barrier(6)
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3").uri(f"leases{tmp_path}")

    def run() -> None:
        nonlocal running, maximum
        gate.wait()
        try:
            with acquire_lease(Store.at(root), [ONE]):
                with lock:
                    running += 1
                    maximum = max(maximum, running)
                ended.wait()
                with lock:
                    running -= 1
        except LeaseConflictError:
            refused.append(1)
            if len(refused) == 5:
                ended.set()

    refused: list[int] = []
    ended = threading.Event()
    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (maximum, len(refused)) == (1, 5)
    assert active_leases(Store.at(root)) == []


@contextmanager
def handlers(interrupt: Any) -> Iterator[None]:
    """Set the handler of SIGINT, and let SIGTERM raise KeyboardInterrupt as it does in a run."""
    before = signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_acquire_lease_interrupts_a_run_whose_lease_is_gone(tmp_path: Path, handler: Any) -> None:
    """With SIGINT ignored, as for a background command of a shell script, SIGTERM interrupts."""

    def work() -> None:
        with acquire_lease(Store.at(str(tmp_path)), [ONE]):
            leases(tmp_path)[0].unlink()
            threading.Event().wait(5)

    with handlers(handler), pytest.raises(KeyboardInterrupt):
        work()


def test_acquire_lease_interrupts_a_run_that_cannot_renew_it_before_another_may_start(
    s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at(s3_proxy.uri(f"outage{tmp_path}"))
    started = 0.0

    def work() -> None:
        nonlocal started
        with acquire_lease(store, [ONE]):
            while active_leases(store)[0].age > 0.5:
                time.sleep(0.05)
            s3_proxy.set_faults(deny=[503, "SlowDown", "later"])
            started = time.monotonic()
            threading.Event().wait(30)

    monkeypatch.setattr(io, "STOP", tenacity.stop_after_attempt(1))
    with handlers(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        work()
    stopped = time.monotonic()
    assert 0.5 < stopped - started < lease._DEAD_AFTER
    s3_proxy.set_faults()
    assert len(active_leases(store)) == 1  # it could not be deleted, and is dead for others
    with acquire_lease(store, [ONE]):
        pass


def test_active_leases_show_progress_and_dead_runs(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    with acquire_lease(store, [ONE, OTHER], lambda: SNAPSHOT):
        while not (now := active_leases(store)[0]).progress:
            time.sleep(0.01)
        assert now.progress == SNAPSHOT
        assert now.makes == {ONE.fingerprint, OTHER.fingerprint}
        assert now.is_alive
        assert "640 of 1,297 rows (49%) 35.0/s, 19 s left, 2 rejected, on caption 1 x 1 GPU" in str(now)
        (file,) = leases(tmp_path)
        killed = json.loads(file.read_text()) | {"at": time.time() - 300, "host": "elsewhere"}
    assert active_leases(store) == []
    file.write_text(json.dumps(killed))
    (dead,) = active_leases(store)
    assert not dead.is_alive
    assert "on elsewhere" in str(dead)
    assert "its last heartbeat 5 min ago and is dead" in str(dead)


@pytest.mark.parametrize("kind", NO_LEASES)
def test_files_that_are_no_leases_are_ignored_and_kept(tmp_path: Path, kind: str) -> None:
    write_lease(tmp_path, 1)
    planted, store = tmp_path / "leases" / "killed.json", Store.at(str(tmp_path))
    planted.write_bytes(NO_LEASES[kind])
    with acquire_lease(store, [ONE]):
        assert [found.makes for found in active_leases(store)] == [{ONE.fingerprint}]
    assert active_leases(store) == []
    assert planted.read_bytes() == NO_LEASES[kind]


@pytest.mark.parametrize(
    "progress",
    [
        {"title": "pair"},
        asdict(SNAPSHOT) | {"rows": "many"},
        asdict(SNAPSHOT) | {"makes": 1},
        asdict(SNAPSHOT) | {"rate": float("nan")},
        asdict(SNAPSHOT) | {"rate": 1e-320},
        asdict(SNAPSHOT) | {"added": 1},
        "half",
    ],
)
def test_lease_with_progress_of_another_version_is_honoured(tmp_path: Path, progress: Any) -> None:
    write_lease(tmp_path, os.getpid(), socket.gethostname(), at=time.time(), progress=progress)
    (found,) = active_leases(Store.at(str(tmp_path)))
    assert found.makes == {ONE.fingerprint}
    assert found.progress in (None, SNAPSHOT)
    assert "makes these artifacts; last heartbeat" in str(found)


def test_lease_in_a_terminal_has_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = asdict(SNAPSHOT) | {"title": "\x1b[2J", "note": "\u202e\n"}
    write_lease(tmp_path, 1, "\x1b[2Jelsewhere", since="1\u202e Jan\n", at=time.time(), progress=progress)
    store, planted = Store.at(str(tmp_path)), tmp_path / "leases" / "killed.json"
    shown = str(active_leases(store)[0])
    assert shown.count("\n") == 1
    assert shown.replace("\n", "").isprintable()
    assert "on \\x1b[2Jelsewhere, since 1\\u202e Jan\\n)" in shown

    ended = threading.Event()

    def beat() -> None:
        content, number = json.loads(planted.read_bytes()), 7
        while not ended.wait(0.1):
            number += 1
            (tmp_path / "next").write_text(json.dumps(content | {"beat": number}))
            (tmp_path / "next").rename(planted)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    with pytest.raises(LeaseConflictError) as raised, acquire_lease(store, [ONE]):
        raise AssertionError("both run")
    ended.set()
    thread.join()
    assert str(raised.value).isprintable()
    printed = capsys.readouterr().out
    assert "another run may be alive (process 1 on \\x1b[2Jelsewhere, since" in printed
    assert printed.replace("\n", "").isprintable()


def test_acquire_lease_whose_file_is_overwritten_writes_it_again(tmp_path: Path) -> None:
    with acquire_lease(Store.at(str(tmp_path)), [ONE]):
        (file,) = leases(tmp_path)
        file.write_bytes(b"no lease")
        end = time.monotonic() + 5
        while file.read_bytes() == b"no lease" and time.monotonic() < end:
            time.sleep(0.02)
        assert json.loads(file.read_bytes())["makes"] == {ONE.fingerprint: "pair"}


def test_run_that_cannot_be_interrupted_and_not_renew_its_lease_ends_before_another_may_start(tmp_path: Path) -> None:
    program = """
import shutil, signal, sys, time
from pathlib import Path
from vlcp_ray.store import lease
from vlcp_ray.store.artifact import Step, Store

lease.HEARTBEAT_INTERVAL, lease._STOP_AFTER, lease._EXIT_AFTER = 0.1, 1.0, 2.0
signal.signal(signal.SIGINT, lambda *_: None)  # as a library that waits and does not listen
with lease.acquire_lease(Store.at(sys.argv[1]), [Step("pair", 1, {})]):
    shutil.rmtree(sys.argv[1])
    Path(sys.argv[1]).write_text("the folder is gone")
    for _ in range(300):
        time.sleep(0.1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "root")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "its lease could not be renewed for 1 s" in done.stdout


def test_heartbeat_is_renewed_in_the_seconds_for_which_a_store_is_there(
    s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six outages of two seconds, with half a second between them: the lease lasts, as no gap is missed."""
    for name, value in (("_STOP_AFTER", 6.0), ("_RETRY_INTERVAL", 0.05), ("_REQUEST_TIMEOUT", 0.5)):
        monkeypatch.setattr(lease, name, value)
    store = Store.at(s3_proxy.uri(f"gaps{tmp_path}"))
    with handlers(signal.default_int_handler), acquire_lease(store, [ONE]):
        before = active_leases(store)[0].age
        for number in range(6):
            if number % 2:
                with s3_proxy.silent():
                    time.sleep(2)
            else:
                s3_proxy.set_faults(deny=[503, "SlowDown", "later"])
                time.sleep(2)
                s3_proxy.set_faults()
            time.sleep(0.5)
        assert active_leases(store)[0].age < 3
    assert before < 3
    assert active_leases(store) == []


def test_requests_within_gives_up_a_request_that_a_store_has_lost(s3_proxy: Proxy, tmp_path: Path) -> None:
    filesystem, path = open_uri(s3_proxy.uri(f"lost{tmp_path}/file"), "--root")
    files.write(filesystem, path, b"x")
    with s3_proxy.silent(), files.requests_within(0.3):
        start = time.monotonic()
        with pytest.raises(OSError):
            files.read(filesystem, path)
        assert time.monotonic() - start < 20
    assert files.read(filesystem, path) == b"x"
