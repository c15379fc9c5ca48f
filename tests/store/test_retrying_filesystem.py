"""Tests of the filesystem that retries its calls."""

import pickle
from pathlib import Path

import pytest
import tenacity
from pyarrow import fs as pafs

from tests.s3 import Proxy
from tests.store import flaky
from vlcp_ray.store import io
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
