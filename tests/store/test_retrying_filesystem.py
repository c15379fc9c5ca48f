"""Tests of the filesystem that retries its calls."""

import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tenacity
from pyarrow import fs as pafs

from tests.s3 import Proxy
from tests.store import flaky
from vlcp_ray.store import files, io
from vlcp_ray.store.io import StoreError, open_uri
from vlcp_ray.store.retrying_filesystem import retrying


def test_retrying_filesystem_on_a_flaky_store_completes_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "WAIT", tenacity.wait_none())
    monkeypatch.setattr(io, "STOP", tenacity.stop_after_attempt(60))
    filesystem = retrying(flaky.store(tmp_path, 0.4).filesystem)
    for number in range(20):
        folder = f"{tmp_path}/{number}"
        filesystem.create_dir(f"{folder}/a", recursive=True)
        with filesystem.open_output_stream(f"{folder}/a/one") as sink:
            sink.write(b"content")
        filesystem.move(f"{folder}/a/one", f"{folder}/a/two")
        filesystem.create_dir(f"{folder}/b")
        pafs.copy_files(f"{folder}/a", f"{folder}/b", source_filesystem=filesystem, destination_filesystem=filesystem)
        assert filesystem.open_input_stream(f"{folder}/b/two").read() == b"content"
        assert {info.base_name for info in filesystem.get_file_info(pafs.FileSelector(folder))} == {"a", "b"}
        filesystem.delete_dir(f"{folder}/a")
    assert len(list(tmp_path.rglob("two"))) == 20


def test_retrying_filesystem_after_pickling_is_equal(tmp_path: Path) -> None:
    filesystem = retrying(pafs.LocalFileSystem())
    there = pickle.loads(pickle.dumps(filesystem))
    assert there == filesystem
    assert there != retrying(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))
    assert there.get_file_info(str(tmp_path)).type == pafs.FileType.Directory


def test_retrying_filesystem_on_a_failing_store_raises_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "WAIT", tenacity.wait_none())
    monkeypatch.setattr(io, "STOP", tenacity.stop_after_attempt(2))
    with pytest.raises(StoreError, match=r"cannot create dir .* Free space"):
        retrying(flaky.store(tmp_path, 1).filesystem).create_dir(f"{tmp_path}/a")


def test_create_dir_on_s3_writes_no_object(s3_proxy: Proxy, tmp_path: Path) -> None:
    filesystem, folder = open_uri(s3_proxy.uri(f"folders{tmp_path}"), "--root")
    retrying(filesystem).create_dir(f"{folder}/a/b", recursive=True)
    assert s3_proxy.count().total() == 0
    with retrying(filesystem).open_output_stream(f"{folder}/a/b/c") as sink:
        sink.write(b"content")
    assert s3_proxy.objects(f"folders{tmp_path}") == {f"{folder}/a/b/c": 7}
    assert s3_proxy.count()["PUT-DIR"] == 0


def test_local_file_is_replaced_when_its_stream_is_closed(tmp_path: Path) -> None:
    filesystem, file = retrying(pafs.LocalFileSystem()), tmp_path / "snapshot.json"
    file.write_bytes(b"old")
    with filesystem.open_output_stream(str(file)) as sink:
        sink.write(b"new " * 100_000)
        sink.flush()
        assert file.read_bytes() == b"old"
        assert all(path.name[0] == "." for path in tmp_path.iterdir() if path != file)
    assert file.read_bytes() == b"new " * 100_000
    assert list(tmp_path.iterdir()) == [file]


def test_local_stream_that_is_dropped_publishes_nothing(tmp_path: Path) -> None:
    filesystem, file = retrying(pafs.LocalFileSystem()), tmp_path / "snapshot.json"
    file.write_bytes(b"old")
    sink = filesystem.open_output_stream(str(file))
    sink.write(b"new")
    del sink
    gc.collect()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {file: b"old"}


def test_local_stream_that_an_exception_ends_publishes_nothing(tmp_path: Path) -> None:
    filesystem, file = retrying(pafs.LocalFileSystem()), tmp_path / "snapshot.json"

    def write(error: Exception | None) -> None:
        with filesystem.open_output_stream(str(file)) as sink:
            sink.write(b"new")
            if error:
                raise error

    with pytest.raises(ZeroDivisionError):
        write(ZeroDivisionError())
    assert list(tmp_path.iterdir()) == []
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        write(None)  # an exception that is being handled is not one of the writer
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {file: b"new"}


def test_local_stream_that_cannot_be_closed_leaves_no_file(tmp_path: Path) -> None:
    sink = retrying(pafs.LocalFileSystem()).open_output_stream(f"{tmp_path}/folder")
    sink.write(b"new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        sink.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
    assert raised.value.errno == errno.EISDIR


def test_copy_of_a_folder_to_a_local_disk_leaves_its_files_only(tmp_path: Path) -> None:
    filesystem, source = retrying(pafs.LocalFileSystem()), tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(os.urandom(3 * 2**20))
    filesystem.create_dir(f"{tmp_path}/copy")
    pafs.copy_files(str(source), f"{tmp_path}/copy", destination_filesystem=filesystem)
    assert (tmp_path / "copy" / "weights").read_bytes() == (source / "weights").read_bytes()
    assert len(list((tmp_path / "copy").iterdir())) == 1


#: Writes half of a file and is killed.
KILLED = """
import os, signal, sys
from pyarrow import fs
from vlcp_ray.store.retrying_filesystem import retrying
sink = retrying(fs.LocalFileSystem()).open_output_stream(sys.argv[1])
sink.write(b"half")
sink.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_writer_leaves_the_old_local_file(tmp_path: Path) -> None:
    file = tmp_path / "snapshot.json"
    file.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert file.read_bytes() == b"old"
    assert files.list_files(pafs.LocalFileSystem(), str(tmp_path)) == [files.File(str(file), 3)]
