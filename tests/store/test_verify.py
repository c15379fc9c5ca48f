"""Tests of the comparison of artifacts with the files that their manifests list."""

from pathlib import Path

import pytest

from tests.engine.member_rows import members
from vlcp_ray.engine.context import list_written
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.artifact import Artifact, Step, Store
from vlcp_ray.store.verify import Comparison, check_sizes, compare_all

STEP = Step("pair", 1, {})
COUNTS = {"rows_in": 3, "rows": 3, "rejected": 0, "seconds": 1.0}


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A complete artifact with two tables and a file, and hidden files, which no manifest lists."""
    made = Store.at(str(tmp_path)).artifact(STEP)
    made.write_table("pairs/a.parquet", members(3))
    made.write_table("rejected/b.parquet", members(2))
    made.write_bytes("note.json", b"{}")
    Path(made.path, "pairs", ".hidden").write_bytes(b"left by a killed process")
    made.complete(COUNTS | {"files": list_written(made)})
    return made


def compare(artifact: Artifact, contents: bool = True) -> Comparison:
    store = Store.at(str(Path(artifact.path).parent))
    (found,) = compare_all(store, [STEP, Step("absent", 1, {})], store.manifests([STEP]), contents=contents)
    return found


def test_compare_all_of_untouched_files_finds_nothing(artifact: Artifact) -> None:
    found = compare(artifact)
    assert (found.count, list(found.lines()), found.is_damaged) == (3, [], False)
    assert found.bytes == sum(file.size for file in artifact.files(recursive=True) if file.name != "manifest.json")


def test_compare_all_lists_missing_changed_and_surplus_files(artifact: Artifact) -> None:
    Path(artifact.path, "pairs", "a.parquet").unlink()
    Path(artifact.path, "note.json").write_bytes(b"[]")  # the same size
    Path(artifact.path, "pairs", "c.parquet").write_bytes(b"")
    found = compare(artifact)
    assert (found.missing, found.changed, found.surplus) == (("pairs/a.parquet",), ("note.json",), ("pairs/c.parquet",))
    assert [line.split()[0] for line in found.lines()] == ["missing", "changed", "surplus"]
    assert found.is_damaged
    assert compare(artifact, contents=False).changed == ()


def test_compare_all_of_surplus_files_alone_is_no_damage(artifact: Artifact) -> None:
    Path(artifact.path, "pairs", "c.parquet").write_bytes(b"")
    assert not compare(artifact).is_damaged


@pytest.mark.parametrize("size", [None, 1])
def test_check_sizes_refuses_missing_and_cut_files_and_names_the_folder(artifact: Artifact, size: int | None) -> None:
    store = Store.at(str(Path(artifact.path).parent))
    check_sizes(store, [STEP], store.manifests([STEP]))
    table = Path(artifact.path, "pairs", "a.parquet")
    table.write_bytes(table.read_bytes()[:size]) if size else table.unlink()
    with pytest.raises(ConfigError, match=f"1 file is not as listed .*a.parquet.*remove {artifact.path} and re-run"):
        check_sizes(store, [STEP], store.manifests([STEP]))


def test_check_sizes_counts_missing_and_cut_files(artifact: Artifact) -> None:
    store = Store.at(str(Path(artifact.path).parent))
    Path(artifact.path, "pairs", "a.parquet").unlink()
    Path(artifact.path, "note.json").write_bytes(b"")
    with pytest.raises(ConfigError, match="2 files are not as listed"):
        check_sizes(store, [STEP], store.manifests([STEP]))


def test_check_sizes_accepts_manifests_without_a_list(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    store.artifact(STEP).complete(COUNTS)
    check_sizes(store, [STEP], store.manifests([STEP]))
    (found,) = compare_all(store, [STEP], store.manifests([STEP]), contents=True)
    assert (found.count, found.is_damaged) == (0, False)
