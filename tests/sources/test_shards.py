"""Tests of reading shards from a store that fails: reads are tried again, and no file is called damaged for it."""

import errno
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tenacity
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs

from tests.image_sets import picture, write_parquet, write_tar
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.parquet import Parquet
from vlcp_ray.sources.shards import ShardError, ShardFile, open_shard
from vlcp_ray.sources.webdataset import WebDataset
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.store import io
from vlcp_ray.store.io import StoreError

RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


class Failing(LocalFileSystem):
    """The local filesystem; each read of an open file may fail."""

    cachable = False

    def __init__(self, fails: Callable[[], Exception | None]) -> None:
        super().__init__()
        self.fails = fails

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        file.f = Reading(file.f, self.fails)
        return file


class Reading:
    """An open file whose reads may fail."""

    def __init__(self, file: Any, fails: Callable[[], Exception | None]) -> None:
        self.file, self.fails = file, fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, *size: int) -> bytes:
        if error := self.fails():
            raise error
        return bytes(self.file.read(*size))


def failing(fails: Callable[[], Exception | None]) -> pafs.FileSystem:
    return pafs.PyFileSystem(pafs.FSSpecHandler(Failing(fails)))


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "WAIT", tenacity.wait_none())
    monkeypatch.setattr(io, "STOP", tenacity.stop_after_attempt(4))


def write_set(folder: Path, kind: str) -> Any:
    """Write a set of one shard; returns the class that reads it."""
    if kind == "parquet":
        write_parquet(folder / "train-0.parquet", [(picture(i), f"{i}.jpg", "cat") for i in range(9)], None)
        return Parquet
    members = [(f"{i}.{name}", content) for i in range(9) for name, content in (("jpg", picture(i)), ("cls", b"cat"))]
    write_tar(folder / "train-0.tar", members)
    if kind == "tar.gz":
        (folder / "train-0.tar.gz").write_bytes(gzip.compress((folder / "train-0.tar").read_bytes()))
        (folder / "train-0.tar").unlink()
    return WebDataset


def rows_of(source: Any) -> list[tuple[str, str]]:
    tables = [table for part in source.parts() for table in source.read(part, ())]
    return [(row["source"], row["reason"]) for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("kind", ["parquet", "tar", "tar.gz"])
def test_shard_on_a_flaky_network_has_all_rows(tmp_path: Path, kind: str) -> None:
    reader, calls = write_set(tmp_path, kind), [0]

    def often() -> Exception | None:
        calls[0] += 1
        return RESET if calls[0] % 2 else None

    rows = rows_of(reader(failing(often), str(tmp_path), Ingest(source=str(tmp_path))))
    assert len(rows) == 9
    assert {reason for _, reason in rows} == {""}
    assert calls[0] > 2


@pytest.mark.parametrize("kind", ["parquet", "tar", "tar.gz"])
@pytest.mark.parametrize("error", [RESET, RuntimeError("an error of a driver's own"), PermissionError("denied")])
def test_shard_whose_store_fails_after_it_was_opened_ends_the_run_as_store_error(
    tmp_path: Path, kind: str, error: Exception
) -> None:
    reader, broken = write_set(tmp_path, kind), [False]
    source = reader(failing(lambda: error if broken[0] else None), str(tmp_path), Ingest(source=str(tmp_path)))
    (part, *_) = source.parts()
    broken[0] = True
    with pytest.raises(StoreError, match=r"cannot read .*train-0"):
        list(source.read(part, ()))


def test_shard_that_was_deleted_is_a_lost_row(tmp_path: Path) -> None:
    source = write_set(tmp_path, "tar")(pafs.LocalFileSystem(), str(tmp_path), Ingest(source=str(tmp_path)))
    (tmp_path / "train-0.tar").unlink()
    assert rows_of(source) == [("train-0.tar:whole file", "unreadable")]


def test_open_shard_of_a_folder_is_a_shard_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="a folder, not a regular file"):
        open_shard(pafs.LocalFileSystem(), str(tmp_path), "")


def test_shard_file_reads_as_a_file_does(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2_000
    (tmp_path / "x").write_bytes(content)
    with ShardFile(pafs.LocalFileSystem(), str(tmp_path / "x")) as file, (tmp_path / "x").open("rb") as plain:
        for offset, whence, size in [
            (0, 0, 10),
            (-5, 2, 10),
            (9, 0, 0),
            (300_000, 0, 100_000),
            (-1_000, 1, 2_000),
            (0, 2, 5),
        ]:
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            assert file.read(size) == plain.read(size)
            assert file.tell() == plain.tell()
        file.seek(2**40)
        assert file.read(2**40) == b""
        with pytest.raises(ValueError, match="before the start"):
            file.seek(-1)


def test_only_shard_that_is_damaged_is_refused_with_fix(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"text" * 500)
    with pytest.raises(ConfigError, match=r"cannot be read as a tar .*; download it again"):
        WebDataset(pafs.LocalFileSystem(), str(tmp_path), Ingest(source=str(tmp_path)))


def test_shard_file_reads_ahead_and_asks_once_for_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1024)
    asked: list[tuple[int, int]] = []
    request = ShardFile._request
    monkeypatch.setattr(ShardFile, "_request", lambda f, at, size: asked.append((at, size)) or request(f, at, size))
    with ShardFile(pafs.LocalFileSystem(), str(tmp_path / "file")) as file:
        file.window = 1000
        for at, size in ((0, 10), (10, 900), (990, 10), (500, 1), (995, 10), (1995, 1), (300, 2000)):
            file.seek(at)
            assert file.read(size) == (bytes(range(256)) * 1024)[at : at + size]
        assert asked == [(0, 1000), (995, 1000), (1995, 1000), (300, 2000)]
        assert file.readable()
