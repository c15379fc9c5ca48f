"""Tests of deleting artifacts: what stays, in which order files go, and what an interruption leaves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from tests.housekeeping.conftest import STRONGER, steps_of, write
from tests.s3 import Server
from vlcp_ray.housekeeping import deletion
from vlcp_ray.stages import STAGES
from vlcp_ray.store import files, lease
from vlcp_ray.store.artifact import MANIFEST, Step, Store
from vlcp_ray.store.lease import LeaseConflictError, acquire_lease


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_INTERVAL", 0.2)


def fill(store: Store) -> tuple[list[Step], list[Step]]:
    """Write the artifacts of two jobs; return the steps of the first, and those that only the second needs."""
    needed, others = steps_of(), steps_of(STRONGER)
    own = {step.fingerprint for step in needed}
    rest = [step for step in others if step.fingerprint not in own]
    for step in (*needed, *rest):
        write(store, step)
    return list(needed), rest


def names(steps: Sequence[Step]) -> set[str]:
    return {step.folder for step in steps}


def present(store: Store) -> set[str]:
    if isinstance(store.filesystem, pafs.S3FileSystem):  # this server keeps empty folders, which S3 does not have
        found = files.list_files(store.filesystem, store.path, recursive=True)
        return {file.path.removeprefix(f"{store.path}/").partition("/")[0] for file in found}
    return set(files.list_folders(store.filesystem, store.path)) - {"leases"}


@pytest.mark.parametrize("place", ["local", "s3", "fsspec"])
def test_delete_leaves_what_is_needed_and_nothing_of_the_rest(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if place == "s3":
        server: Server = request.getfixturevalue("s3")
        store = Store.at(server.uri(f"gc{tmp_path}"))
    else:
        store = Store.at(str(tmp_path) if place == "local" else f"memory://gc{tmp_path}")
    needed, rest = fill(store)
    planned = deletion.plan(store, names(needed))
    assert {one.folder.name for one in planned.deletions} == names(rest)
    assert planned.kept == []
    assert [problem for _, problem in deletion.delete(store, planned)] == [""] * len(rest)
    assert present(store) == names(needed)
    assert all(store.manifests(needed).values())


def test_every_stage_lists_all_that_it_writes_with_the_manifest_first(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    for step in steps_of("evaluate.protocols=['minimax','rded']", "evaluate.input_size=224"):
        write(store, step)
    for one in deletion.plan(store, set()).deletions:
        tops = list(dict.fromkeys(path.partition("/")[0] for path in one.files))
        stage = STAGES[one.folder.stage]
        assert tops[0] == MANIFEST
        assert set(tops) == {MANIFEST, *stage.tables, *stage.files}
        assert [top for top in tops if top in stage.tables] == list(stage.tables)


def test_interrupted_deletion_is_never_complete_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of requests is done, an artifact with a manifest has all files that the manifest lists."""
    really, count = files.delete, 0

    def delete(filesystem: pafs.FileSystem, paths: Sequence[str]) -> None:
        nonlocal count
        if "leases" not in paths[0]:
            count -= 1
            if count < 0:
                raise KeyboardInterrupt
        really(filesystem, paths)

    monkeypatch.setattr(files, "delete", delete)
    for limit in range(0, 14, 2):
        root = tmp_path / str(limit)
        store = Store.at(str(root))
        count = 10**6
        needed, rest = fill(store)
        count = limit
        with pytest.raises(KeyboardInterrupt):
            list(deletion.delete(store, deletion.plan(store, names(needed))))
        for step, manifest in ((step, store.artifact(step).manifest()) for step in (*needed, *rest)):
            assert not manifest or all((root / step.folder / name).exists() for name in manifest["files"])
        count = 10**6
        list(deletion.delete(store, deletion.plan(store, names(needed))))
        assert present(store) == names(needed)


def test_plan_keeps_what_a_live_run_makes_or_reads(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    _, rest = fill(store)
    with acquire_lease(store, rest[1:2], reads=rest[:1]):
        planned = deletion.plan(store, set())
        assert planned.kept == [
            f"{step.folder}: a run that is alive {does} it"
            for step, does in sorted(zip(rest[:2], ("reads", "makes"), strict=True), key=lambda pair: pair[0].folder)
        ]
        assert names(rest[:2]) & {one.folder.name for one in planned.deletions} == set()


@pytest.mark.parametrize("does", ["makes", "reads"])
def test_delete_is_refused_where_a_run_has_begun_after_the_plan(does: str, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    needed, rest = fill(store)
    planned = deletion.plan(store, names(needed))
    held: dict[str, Any] = {"steps": rest[:1]} if does == "makes" else {"steps": [], "reads": rest[:1]}
    with acquire_lease(store, **held), pytest.raises(LeaseConflictError, match=r"wait until it has ended"):
        list(deletion.delete(store, planned))
    assert present(store) == names([*needed, *rest])


def test_run_is_refused_while_what_it_reads_is_deleted(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    needed, rest = fill(store)
    deleting = deletion.delete(store, deletion.plan(store, names(needed)))
    next(deleting)
    with (
        pytest.raises(LeaseConflictError, match="is being deleted by another run"),
        acquire_lease(store, [], reads=rest),
    ):
        raise AssertionError
    with acquire_lease(store, [], reads=needed):
        list(deleting)
    with acquire_lease(store, rest):
        pass


def test_delete_leaves_an_artifact_that_has_changed_since_the_plan(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    needed, rest = fill(store)
    planned = deletion.plan(store, names(needed))
    store.artifact(rest[0]).write_bytes("synthetic/1.parquet", b"new")
    problems = {one.folder.name: problem for one, problem in deletion.delete(store, planned)}
    assert {name for name, problem in problems.items() if problem} == {rest[0].folder}
    assert present(store) == names([*needed, rest[0]])


def test_nothing_but_artifacts_of_stages_is_deleted(tmp_path: Path) -> None:
    store, outside = Store.at(str(tmp_path / "runs")), tmp_path / "outside"
    steps = {step.stage: step for step in steps_of()}
    mine = store.artifact(steps["pair"])
    write(store, steps["pair"])
    mine.write_bytes("notes/a.txt", b"of the user")
    kept = {
        "report-202511270012/page.pdf": "no stage has written page.pdf",  # a date has the form of a fingerprint
        "select-0123456789ab/manifest.json": "its manifest is of something else",
        "teach-0123456789ab/manifest.json": "its manifest cannot be read",
        "notes.txt": "",
        "experiment-0123456789ab/synthetic/0.parquet": "",
        "logs/digits/pair/x.log": "",
    }
    for name in kept:
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"stage": "select", "fingerprint": "ba9876543210"}' if name.startswith("select") else "{")
    write(Store.at(str(outside)), steps["ingest"])
    (tmp_path / "runs" / steps["ingest"].folder).symlink_to(outside / steps["ingest"].folder)
    write(store, steps["finetune"])
    (outside / "photographs").mkdir()
    (outside / "photographs" / "0.jpg").touch()
    (Path(store.artifact(steps["finetune"]).path) / "checkpoints" / "link").symlink_to(outside / "photographs")
    (tmp_path / "runs" / f"prototype-{'0' * 12}").mkdir()  # what an interruption of this may leave
    (Path(mine.path) / "pairs" / f".0.parquet.{'0' * 32}").touch()  # and one of a writer

    planned = deletion.plan(store, set())
    for name, reason in kept.items():
        if reason:
            assert any(line.startswith(f"{name.partition('/')[0]}: {reason}") for line in planned.kept), name
    assert f"{steps['ingest'].folder}: it is a link" in planned.kept
    list(deletion.delete(store, planned))
    left = {str(path.relative_to(tmp_path / "runs")) for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    finetuned = f"{steps['finetune'].folder}/checkpoints/link/0.jpg"
    assert left - {finetuned} == {*kept, f"{steps['pair'].folder}/notes/a.txt"}
    assert (outside / "photographs" / "0.jpg").exists()
    assert (outside / steps["ingest"].folder / MANIFEST).exists()
    assert not (tmp_path / "runs" / f"prototype-{'0' * 12}").exists()
