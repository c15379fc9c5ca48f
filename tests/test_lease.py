"""Holds that two runs never make the same artifact at once, and that a dead run is in nobody's way."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vlcp_ray import lease
from vlcp_ray.lease import HeldError, held, signs
from vlcp_ray.progress import Reading
from vlcp_ray.store import Step, Store

ONE, OTHER = Step("pair", 1, {"a": 1}), Step("pair", 1, {"a": 2})


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "_DEAD_AFTER", 0.6)
    monkeypatch.setattr(lease, "_LOOK", 0.02)


def leases(root: Path) -> list[Path]:
    return sorted((root / "leases").glob("*.json"))


def leave(root: Path, pid: int, host: str = "elsewhere") -> None:
    """What a run leaves that was killed while it made ONE."""
    (root / "leases").mkdir(parents=True)
    left = {"host": host, "pid": pid, "since": "1 Jan", "makes": {ONE.fingerprint: "pair"}, "beat": 7}
    (root / "leases" / "left.json").write_text(json.dumps(left))


def test_the_second_run_on_the_same_artifact_says_whose_it_is_and_stops(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    with held(store, [ONE]):
        with (
            pytest.raises(HeldError, match=r"pair is being made by another run .*the same command then goes on"),
            held(store, [OTHER, ONE]),
        ):
            raise AssertionError("both at work")
        assert len(leases(tmp_path)) == 1
    assert leases(tmp_path) == []


def test_runs_on_different_artifacts_leave_each_other_alone(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    with held(store, [ONE]), held(store, [OTHER]):
        assert len(leases(tmp_path)) == 2
    assert leases(tmp_path) == []


def test_a_run_killed_on_this_machine_is_in_nobodys_way(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leave(tmp_path, ended.pid, socket.gethostname())
    with held(Store.at(str(tmp_path)), [ONE]):
        assert len(leases(tmp_path)) == 1


def test_a_run_that_died_elsewhere_is_known_by_its_silence(tmp_path: Path) -> None:
    leave(tmp_path, 1)
    with held(Store.at(str(tmp_path)), [ONE]):
        assert "left.json" not in {path.name for path in leases(tmp_path)}


def test_an_error_gives_the_lease_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), held(Store.at(str(tmp_path)), [ONE]):
        raise RuntimeError
    assert leases(tmp_path) == []


def test_of_many_that_start_at_once_at_most_one_works(tmp_path: Path) -> None:
    at_work, most, lock, gate = 0, 0, threading.Lock(), threading.Barrier(6)

    def run() -> None:
        nonlocal at_work, most
        gate.wait()
        try:
            with held(Store.at(str(tmp_path)), [ONE]):
                with lock:
                    at_work += 1
                    most = max(most, at_work)
                threading.Event().wait(1)
                with lock:
                    at_work -= 1
        except HeldError:
            pass

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 1
    with held(Store.at(str(tmp_path)), [ONE]):
        assert len(leases(tmp_path)) == 1


def test_a_run_whose_lease_was_taken_over_stops(tmp_path: Path) -> None:
    def work() -> None:
        with held(Store.at(str(tmp_path)), [ONE]):
            leases(tmp_path)[0].unlink()
            threading.Event().wait(5)

    with pytest.raises(KeyboardInterrupt):
        work()


def test_how_far_a_run_is_can_be_read_from_the_store(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    far = Reading("pair", [ONE.fingerprint], 640, 1297, "rows", 2, 35.0, "caption 1 x 1 GPU", "")
    with held(store, [ONE, OTHER], lambda: far):
        while not (now := signs(store)[0]).reading:
            time.sleep(0.01)
        assert now.reading == far
        assert now.makes == {ONE.fingerprint, OTHER.fingerprint}
        assert now.fresh
        assert "640 of 1,297 rows (49%) 35.0/s, 19 s left, 2 rejected, on caption 1 x 1 GPU" in str(now)
        (file,) = leases(tmp_path)
        left = json.loads(file.read_text()) | {"at": time.time() - 300, "host": "elsewhere"}
    assert signs(store) == []
    file.write_text(json.dumps(left))
    (dead,) = signs(store)
    assert not dead.fresh
    assert "on elsewhere" in str(dead)
    assert "its last sign of life 5 min ago and is dead" in str(dead)
