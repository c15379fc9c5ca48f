"""Tests of artifacts: fingerprints, atomic writes, and the manifest that marks them as complete."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest
import tenacity

from tests.store import flaky
from vlcp_ray.schemas import conform
from vlcp_ray.stages.prototype import MEMBERS
from vlcp_ray.store import io
from vlcp_ray.store.artifact import Step, Store, part_name
from vlcp_ray.store.io import StoreError

MEMBER_ROWS = [{"image_id": f"i{i}", "label": 0, "cluster": i, "distance": 0.5} for i in range(4)]
TABLE = conform(pa.Table.from_pylist(MEMBER_ROWS), MEMBERS)


def step(**changes: object) -> Step:
    return dataclasses.replace(Step("pair", 1, {"a": 1}, {"seed": 0}, {"x": Step("ingest", 1, {})}), **changes)


def test_fingerprint_depends_on_everything_that_determines_the_content() -> None:
    steps = [
        step(),
        step(stage="other"),
        step(version=2),
        step(settings={"a": 2}),
        step(key={"seed": 1}),
        step(inputs={"x": Step("ingest", 2, {})}),
    ]
    assert len({s.fingerprint for s in steps}) == len(steps)
    assert step().fingerprint == "c7b1a01448c6"  # the same on every machine and in every process


def test_fingerprint_ignores_the_order_of_settings() -> None:
    assert step(settings={"a": 1, "b": 2}).fingerprint == step(settings={"b": 2, "a": 1}).fingerprint


def test_step_title_has_stage_and_key() -> None:
    assert step(key={"method": "herding", "seed": 1, "ipc": 5}).title == "pair herding seed 1 ipc 5"


def test_manifests_has_none_for_an_artifact_that_is_not_complete(tmp_path: Path) -> None:
    store, other = Store.at(str(tmp_path)), step(version=2)
    artifact = store.artifact(step())
    assert store.manifests([step(), other]) == {}
    artifact.write_table("members/a.parquet", TABLE)
    assert store.manifests([step(), other]) == {step().fingerprint: None}
    assert artifact.manifest() is None
    artifact.complete({"rows": 4})
    assert store.manifests([step(), other]) == {step().fingerprint: {"rows": 4}}
    assert artifact.manifest() == {"rows": 4}


def test_table_reads_all_of_its_files(tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(step())
    assert artifact.table("members", MEMBERS).schema == MEMBERS
    assert len(artifact.table("members", MEMBERS)) == 0
    artifact.write_table("members/b.parquet", TABLE.slice(0, 3))
    artifact.write_table("members/a.parquet", TABLE.slice(3))
    assert artifact.table("members", MEMBERS).sort_by("image_id").to_pylist() == TABLE.to_pylist()
    assert artifact.table("members", MEMBERS, ["label"]).column_names == ["label"]


def test_rows_reads_the_rows_with_the_values(tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(step())
    wanted = pa.chunked_array([["i1"], ["i3", "absent"]])
    assert len(artifact.rows("members", MEMBERS, ["image_id"], "image_id", wanted)) == 0
    artifact.write_table("members/a.parquet", TABLE)
    rows = artifact.rows("members", MEMBERS, ["image_id", "cluster"], "image_id", wanted)
    assert rows.to_pylist() == [{"image_id": "i1", "cluster": 1}, {"image_id": "i3", "cluster": 3}]


def test_delete_removes_one_folder(tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(step())
    for folder in ("members", "other"):
        artifact.write_table(f"{folder}/a.parquet", TABLE)
    artifact.delete("members")
    assert (artifact.parts("members"), len(artifact.parts("other"))) == ([], 1)


def test_write_table_to_a_flaky_store_writes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "WAIT", tenacity.wait_none())
    monkeypatch.setattr(io, "STOP", tenacity.stop_after_attempt(40))
    artifact = flaky.store(tmp_path, 0.4).artifact(step())
    rows = [pa.table({"label": pa.array([i], pa.int32())}) for i in range(20)]
    for i, table in enumerate(rows):
        artifact.write_table(f"members/{i:02}.parquet", table)
    artifact.complete({"rows": 20})
    rarely = flaky.store(tmp_path, 0.03).artifact(step())  # a table is read whole: 20 files must open in one attempt
    assert rarely.table("members", MEMBERS, ["label"])["label"].to_pylist() == list(range(20))
    assert artifact.manifest() == {"rows": 20}
    (folder,) = tmp_path.glob("*/members")
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:02}.parquet" for i in range(20)]


def test_store_at_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--root .*file: it is a file; give a folder"):
        Store.at(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="a part of the path is a file, not a folder"):
        Store.at(str(tmp_path / "file" / "runs")).artifact(step()).manifest()


def test_part_name_of_the_same_rows_is_the_same() -> None:
    assert part_name(["a", "b"]) == part_name(iter(["a", "b"]))
    assert part_name(["a", "b"]) != part_name(["ab"])


@pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])
def test_get_folder_returns_what_put_folder_copied(tmp_path: Path, local: bool) -> None:
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "unet" / "w.bin").write_bytes(b"\0" * 1000)
    store = Store.at(str(tmp_path / "root")) if local else flaky.store(tmp_path / "root", 0)
    artifact = store.artifact(step())
    artifact.put_folder(model, "model")
    there = Path(artifact.get_folder("model", tmp_path / "copy"))
    assert there == (Path(artifact.path) / "model" if local else tmp_path / "copy")
    assert (there / "unet" / "w.bin").read_bytes() == b"\0" * 1000
