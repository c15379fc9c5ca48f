"""Whether artifacts appear whole, are sealed last, and keep their identity everywhere."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from tests import flaky
from vlcp_ray.schemas import MEMBERS, conform
from vlcp_ray.store import Step, Store, StoreError, part_name

MEMBER_ROWS = [{"image_id": f"i{i}", "label": 0, "cluster": i, "distance": 0.5} for i in range(4)]
TABLE = conform(pa.Table.from_pylist(MEMBER_ROWS), MEMBERS)


def step(**changes: object) -> Step:
    return dataclasses.replace(Step("pair", 1, {"a": 1}, {"seed": 0}, {"x": Step("ingest", 1, {})}), **changes)


def test_fingerprints_depend_on_everything_that_decides_the_content() -> None:
    changed = [
        step(),
        step(stage="other"),
        step(version=2),
        step(science={"a": 2}),
        step(key={"seed": 1}),
        step(inputs={"x": Step("ingest", 2, {})}),
    ]
    assert len({s.fingerprint for s in changed}) == len(changed)
    assert step().fingerprint == "c7b1a01448c6"  # on every machine, in every process


def test_fingerprints_do_not_depend_on_the_order_of_settings() -> None:
    assert step(science={"a": 1, "b": 2}).fingerprint == step(science={"b": 2, "a": 1}).fingerprint


def test_the_seal_is_what_makes_an_artifact_done(tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(step())
    assert not artifact.exists()
    artifact.write_table("members/a.parquet", TABLE)
    assert artifact.exists()
    assert artifact.manifest() is None
    artifact.seal({"rows": 4})
    assert artifact.manifest() == {"rows": 4}


def test_a_table_is_all_of_its_files(tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(step())
    assert artifact.table("members", MEMBERS).schema == MEMBERS
    assert len(artifact.table("members", MEMBERS)) == 0
    artifact.write_table("members/b.parquet", TABLE.slice(0, 3))
    artifact.write_table("members/a.parquet", TABLE.slice(3))
    assert artifact.table("members", MEMBERS).sort_by("image_id").to_pylist() == TABLE.to_pylist()
    assert artifact.table("members", MEMBERS, ["label"]).column_names == ["label"]


def test_a_store_that_refuses_for_a_while_gets_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.store._PAUSES", (0.0,) * 40)
    artifact = flaky.store(tmp_path, 0.4).artifact(step())
    rows = [pa.table({"label": pa.array([i], pa.int32())}) for i in range(20)]
    for i, table in enumerate(rows):
        artifact.write_table(f"members/{i:02}.parquet", table)
    artifact.seal({"rows": 20})
    seldom = flaky.store(tmp_path, 0.03).artifact(step())  # a table is read whole: 20 files must open in one attempt
    assert seldom.table("members", MEMBERS, ["label"])["label"].to_pylist() == list(range(20))
    assert artifact.manifest() == {"rows": 20}
    (folder,) = tmp_path.glob("*/members")
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:02}.parquet" for i in range(20)]


def test_a_store_that_refuses_for_good_ends_with_one_sentence_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlcp_ray.store._PAUSES", (0.0, 0.0))
    artifact = Store.at(str(tmp_path)).artifact(step())

    def fail(sink: pa.NativeFile) -> None:
        sink.write(b"half")
        raise OSError("disk full")

    with pytest.raises(StoreError, match=r"refuses to write .*a.parquet, 3 times in 0 s: disk full. Free space"):
        artifact._write_whole("members/a.parquet", fail)
    assert artifact.files("members") == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_in_the_place_of_a_folder_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--root .*file: it is a file; give a folder"):
        Store.at(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="on that path lies a file, not a folder"):
        Store.at(str(tmp_path / "file" / "runs")).artifact(step()).manifest()


def test_the_same_rows_written_twice_are_one_file() -> None:
    assert part_name(["a", "b"]) == part_name(iter(["a", "b"]))
    assert part_name(["a", "b"]) != part_name(["ab"])


def test_folders_come_back_as_they_were(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "unet" / "w.bin").write_bytes(b"\0" * 1000)
    artifact = Store.at(str(tmp_path / "root")).artifact(step())
    artifact.put_folder(model, "model")
    there = Path(artifact.get_folder("model", tmp_path / "copy"))
    assert (there / "unet" / "w.bin").read_bytes() == b"\0" * 1000
