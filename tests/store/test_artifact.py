"""Tests of artifacts: fingerprints, atomic writes, and the manifest that marks them as complete."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tenacity
from pyarrow import parquet

from tests.s3 import Proxy
from tests.store import flaky
from vlcp_ray.schemas import conform
from vlcp_ray.stages.prototype import MEMBERS
from vlcp_ray.store import artifact as artifacts
from vlcp_ray.store import files, io
from vlcp_ray.store.artifact import Artifact, Step, Store, part_name
from vlcp_ray.store.files import File
from vlcp_ray.store.io import AccessError, StoreError

MEMBER_ROWS = [{"image_id": f"i{i}", "label": 0, "cluster": i, "distance": 0.5} for i in range(4)]
TABLE = conform(pa.Table.from_pylist(MEMBER_ROWS), MEMBERS)
COUNTS = {"rows_in": 4, "rows": 4, "rejected": 0, "seconds": 1.5}


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
    artifact.complete(COUNTS | {"note": ["more"]})
    assert store.manifests([step(), other]) == {step().fingerprint: COUNTS | {"note": ["more"]}}
    assert artifact.manifest() == COUNTS | {"note": ["more"]}


#: Contents of manifest.json that are damaged, and what the error says of them.
DAMAGED = {
    b'{"rows": 4': "Invalid JSON",
    b"": "Invalid JSON",
    b"\xff\xfe": "Invalid JSON",
    b"[" * 100_000: "recursion limit exceeded",
    b"[]": "should be an object",
    b"null": "should be an object",
    b"{}": "lacks the field 'rows_in'",
    json.dumps({name: COUNTS[name] for name in ("rows_in", "rows", "rejected")}).encode(): "lacks the field 'seconds'",
    json.dumps(COUNTS | {"rows": "4"}).encode(): "rows: .* integer",
    json.dumps(COUNTS | {"rows": None}).encode(): "rows: .* integer",
    json.dumps(COUNTS | {"seconds": float("nan")}).encode(): "seconds: .* finite number",
    json.dumps(COUNTS | {"files": {"a": 7}}).encode(): "files: a: ",
    json.dumps(COUNTS | {"files": ["a"]}).encode(): "files: .* object",
    json.dumps(COUNTS | {"splits": {"train": "all"}}).encode(): "splits: train: .* integer",
    json.dumps(COUNTS | {"class_names": [1]}).encode(): "class_names: 0: .* string",
}


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: content[:30])
def test_manifests_of_a_damaged_one_names_the_file_and_the_folder_to_remove(tmp_path: Path, content: bytes) -> None:
    store = Store.at(str(tmp_path))
    store.artifact(step()).write_bytes("manifest.json", content)
    fix = f"the artifact is damaged: remove the folder {tmp_path}/pair-"
    with pytest.raises(StoreError, match=rf"^{tmp_path}/pair-\w+/manifest\.json .*{DAMAGED[content]}.*; {fix}"):
        store.manifests([step()])


def test_manifest_field_that_is_missing_is_damage_when_it_is_looked_up(tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(step())
    artifact.complete({"rows": 4})
    manifest = artifact.manifest()
    assert manifest is not None
    assert (manifest["rows"], manifest.get("files")) == (4, None)
    with pytest.raises(StoreError, match=r"manifest\.json lacks the field 'class_names'; the artifact is damaged"):
        manifest["class_names"]


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
    artifact.complete(COUNTS)
    rarely = flaky.store(tmp_path, 0.03).artifact(step())  # a table is read whole: 20 files must open in one attempt
    assert rarely.table("members", MEMBERS, ["label"])["label"].to_pylist() == list(range(20))
    assert artifact.manifest() == COUNTS
    (folder,) = tmp_path.glob("*/members")
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:02}.parquet" for i in range(20)]


def test_store_at_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--root .*file: it is a file; give a folder"):
        Store.at(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="a part of the path is a file, not a folder"):
        Store.at(str(tmp_path / "file" / "runs")).artifact(step()).manifest()


def test_rows_of_no_values_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Store.at(str(tmp_path)).artifact(Step("a", 1, {}))
    schema = pa.schema([("key", pa.int64()), ("text", pa.string())])
    artifact.write_table("t/0.parquet", pa.table({"key": [1], "text": ["x"]}, schema=schema))
    monkeypatch.setattr(Artifact, "files", lambda *_, **__: pytest.fail("listed"))
    assert artifact.rows("t", schema, ["text"], "key", pa.array([], pa.int64())).schema.names == ["text"]


@pytest.mark.parametrize("whole", [0, 2**30])
def test_rows_of_a_large_table_reads_only_the_files_that_have_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    monkeypatch.setattr("vlcp_ray.store.artifact._WHOLE_BYTES", whole)
    artifact = Store.at(str(tmp_path)).artifact(Step("a", 1, {}))
    schema = pa.schema([("key", pa.int64()), ("text", pa.string())])
    for part in range(4):
        rows = {"key": [2 * part, 2 * part + 1], "text": [f"{part}a", f"{part}b"]}
        artifact.write_table(f"t/{part}.parquet", pa.table(rows, schema=schema))
    read: list[tuple[int, list[str] | None]] = []
    inner = Artifact.read_parts

    def record(self: Artifact, parts: Sequence[File], columns: Sequence[str] | None = None, *rest: object) -> pa.Table:
        read.append((len(parts), columns and list(columns)))
        return inner(self, parts, columns, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Artifact, "read_parts", record)
    found = artifact.rows("t", schema, ["text"], "key", pa.array([7, 2, 99]))
    assert found.to_pydict() == {"text": ["1a", "3b"]}
    assert sorted(read, key=str) == (
        [(4, ["text"])] if whole else sorted([(1, ["key"])] * 4 + [(2, ["text"])], key=str)
    )
    assert artifact.rows("t", schema, ["text"], "key", pa.array([99])).num_rows == 0


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


#: Calls that read a table, of which `members/a.parquet` is a file.
READS: dict[str, Callable[[Artifact], Any]] = {
    "table": lambda artifact: artifact.table("members", MEMBERS),
    "one column": lambda artifact: artifact.table("members", MEMBERS, ["image_id"]),
    "rows": lambda artifact: artifact.rows("members", MEMBERS, ["image_id"], "image_id", pa.array(["i1"])),
    "one part": lambda artifact: artifact.read_part("members/a.parquet"),
}


def damage(content: bytes, at_end: bool) -> bytes:
    """Damage the last bytes of the first page of a parquet file, or its footer; the size stays the same."""
    column = parquet.ParquetFile(pa.BufferReader(content)).metadata.row_group(0).column(0)
    end = len(content) - 8 if at_end else column.dictionary_page_offset + column.total_compressed_size
    return content[: end - 12] + b"\xff" * 12 + content[end:]


@pytest.mark.parametrize("at_end", [False, True], ids=["page", "footer"])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("place", ["local", "s3", "s3 in pieces"])
def test_damaged_file_is_named_at_once_with_the_folder_to_remove(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, read: str, at_end: bool
) -> None:
    monkeypatch.setattr(io, "WAIT", tenacity.wait_none())
    monkeypatch.setattr(io, "STOP", tenacity.stop_after_attempt(2))
    monkeypatch.setattr(artifacts, "_WHOLE_BYTES", 2**26 if place == "s3" else 0)
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3").uri(f"damaged{tmp_path}")
    artifact = Store.at(root).artifact(step())
    artifact.write_table("members/b.parquet", TABLE)
    artifact.write_table("members/a.parquet", TABLE)
    assert len(READS[read](artifact))
    path = f"{artifact.path}/members/a.parquet"
    files.write(artifact.filesystem, path, damage(files.read(artifact.filesystem, path), at_end))
    expected = rf"^{artifact.path}/members\S* cannot be read \(.*\); the artifact is damaged: remove the folder"
    with pytest.raises(StoreError, match=expected):
        READS[read](artifact)


def test_open_parts_of_a_damaged_footer_names_the_file(tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(step())
    artifact.write_table("members/a.parquet", TABLE)
    file = Path(artifact.path, "members", "a.parquet")
    file.write_bytes(damage(file.read_bytes(), True))
    with pytest.raises(StoreError, match=r"a\.parquet cannot be read \(.*remove the folder"):
        artifact.open_parts(artifact.parts("members"))


@pytest.mark.parametrize("whole", [True, False])
def test_table_that_the_store_refuses_is_not_called_damaged(
    s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(artifacts, "_WHOLE_BYTES", 2**26 if whole else 0)
    artifact = Store.at(s3_proxy.uri(f"refused{tmp_path}")).artifact(step())
    artifact.write_table("members/a.parquet", TABLE)
    parts = artifact.parts("members")
    s3_proxy.set_faults(deny=[403, "AccessDenied", "no"])
    with pytest.raises(AccessError, match="the credentials lack a permission"):
        artifact.read_parts(parts)
