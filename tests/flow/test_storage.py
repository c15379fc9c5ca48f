"""Whether a store that refuses now and then looks calm to whom it is given patiently."""

import pickle
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests import flaky
from vlcp_ray.flow.storage import patient
from vlcp_ray.store import StoreError


def test_files_and_folders_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.store._PAUSES", (0.0,) * 60)
    calm = patient(flaky.store(tmp_path, 0.4).filesystem)
    for number in range(20):
        place = f"{tmp_path}/{number}"
        calm.create_dir(f"{place}/a", recursive=True)
        with calm.open_output_stream(f"{place}/a/one") as sink:
            sink.write(b"content")
        calm.move(f"{place}/a/one", f"{place}/a/two")
        calm.create_dir(f"{place}/b")
        pafs.copy_files(f"{place}/a", f"{place}/b", source_filesystem=calm, destination_filesystem=calm)
        assert calm.open_input_stream(f"{place}/b/two").read() == b"content"
        assert {info.base_name for info in calm.get_file_info(pafs.FileSelector(place))} == {"a", "b"}
        calm.delete_dir(f"{place}/a")
    assert len(list(tmp_path.rglob("two"))) == 20


def test_it_travels_and_is_the_same_there(tmp_path: Path) -> None:
    calm = patient(pafs.LocalFileSystem())
    there = pickle.loads(pickle.dumps(calm))
    assert there == calm
    assert there != patient(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))
    assert there.get_file_info(str(tmp_path)).type == pafs.FileType.Directory


def test_a_store_that_stays_closed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.store._PAUSES", (0.0,))
    with pytest.raises(StoreError, match=r"refuses to create dir .* Free space"):
        patient(flaky.store(tmp_path, 1).filesystem).create_dir(f"{tmp_path}/a")
