"""Tests of the records of written files: sizes and hashes, and their way from a worker to the driver."""

import hashlib
from pathlib import Path

import pytest
import ray

from tests.engine.member_rows import artifact
from vlcp_ray.engine.context import list_written
from vlcp_ray.engine.tasks import run_remote
from vlcp_ray.store import written
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.written import Written


def test_measure_of_blocks_is_that_of_the_whole() -> None:
    content = b"0123456789" * 1000
    expected = Written(10_000, hashlib.sha256(content).hexdigest())
    assert written.measure([content]) == written.measure([content[:7], memoryview(content[7:])]) == expected
    assert written.measure([]) == Written(0, hashlib.sha256().hexdigest())


def test_dump_returns_the_records_once_and_load_restores_them() -> None:
    written.dump()
    written.record("a", Written(1, "x"))
    records = written.dump()
    assert written.find("a") is None
    assert written.dump() == "{}"
    written.load(records)
    assert written.find("a") == Written(1, "x")


def test_write_bytes_of_memory_and_of_a_file_records_both(tmp_path: Path) -> None:
    target = artifact(tmp_path, "target")
    (tmp_path / "local").write_bytes(b"content")
    target.write_bytes("a", b"content")
    target.write_bytes("b", tmp_path / "local")
    expected = Written(7, hashlib.sha256(b"content").hexdigest())
    assert written.find(f"{target.path}/a") == written.find(f"{target.path}/b") == expected


def _write(target: Artifact) -> int:
    target.write_bytes("table/by-worker", b"worker")
    return 5


@pytest.mark.filterwarnings("default")
def test_list_written_has_the_files_of_workers_and_of_an_earlier_run(ray_session: None, tmp_path: Path) -> None:
    target = artifact(tmp_path, "target")
    assert run_remote(_write, target) == 5
    assert written.find(f"{target.path}/table/by-worker") is not None  # reported by the worker, not read again
    target.write_bytes("by-driver", b"driver")
    target.write_bytes("checkpoints/old", b"temporary")
    target.write_bytes("manifest.json", b"{}")
    Path(target.path, "earlier").write_bytes(b"earlier")
    Path(target.path, "by-driver").write_bytes(b"changed since")
    contents = {"by-driver": b"changed since", "earlier": b"earlier", "table/by-worker": b"worker"}
    assert list_written(target, ("checkpoints",)) == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    assert ray.is_initialized()
