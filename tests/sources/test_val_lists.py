"""Tests of the lists of the classes of val images."""

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.image_sets import write_files
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.val_lists import ValList, find_val_list

FILESYSTEM = pafs.LocalFileSystem()
KAGGLE = b"ImageId,PredictionString\nval_1,n01440764 1 2 3 4 n01440764 5 6 7 8\nval_2,n02102040 1 1 9 9\n\nval_3,\n"


def test_find_val_list_of_kaggle_is_found_in_the_folders_above(tmp_path: Path) -> None:
    files = {"LOC_val_solution.csv": b"\xef\xbb\xbf" + KAGGLE, "ILSVRC/Data/CLS-LOC/val/val_1.JPEG": b""}
    root = write_files(tmp_path, files) / "ILSVRC/Data/CLS-LOC"
    found = find_val_list(FILESYSTEM, str(root), f"{root}/val", str(root))
    assert found is not None
    assert found.read(FILESYSTEM) == {"val_1": "n01440764", "val_2": "n02102040"}


def test_find_val_list_beside_the_images_comes_first(tmp_path: Path) -> None:
    annotations = b"\xef\xbb\xbfval_0.JPEG\tn01443537\t0\t0\t9\t9\nval_1.x.JPEG\tn01629819\t0\n"
    root = write_files(tmp_path, {"LOC_val_solution.csv": KAGGLE, "val/val_annotations.txt": annotations})
    found = find_val_list(FILESYSTEM, str(root), f"{root}/val", str(root))
    assert found is not None
    assert found.read(FILESYSTEM) == {"val_0": "n01443537", "val_1.x": "n01629819"}


def test_find_val_list_without_one_is_none(tmp_path: Path) -> None:
    (tmp_path / "LOC_val_solution.csv").mkdir()
    assert find_val_list(FILESYSTEM, str(tmp_path / "a/b/c/d/e"), str(tmp_path / "a/b/c/d/e/val"), "") is None


def test_val_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "LOC_val_solution.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"LOC_val_solution\.csv cannot be read"):
        ValList(str(tmp_path / "LOC_val_solution.csv"), "LOC_val_solution.csv").read(FILESYSTEM)


@pytest.mark.parametrize(("folders", "is_found"), [("a/b/c", True), ("a/b/c/d", False)])
def test_find_val_list_looks_into_four_folders_above_val(tmp_path: Path, folders: str, is_found: bool) -> None:
    root = write_files(tmp_path, {"LOC_val_solution.csv": KAGGLE}) / folders
    assert (find_val_list(FILESYSTEM, str(root), f"{root}/val", str(root)) is not None) == is_found


@pytest.mark.parametrize("name", ["set/val/val_annotations.txt", "set/LOC_val_solution.csv", "LOC_val_solution.csv"])
def test_val_list_that_is_a_link_out_of_the_set_is_refused(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, {"other/private.csv": b"val_1,n01440764\t1\n", "set/val/val_1.JPEG": b""})
    (tmp_path / name).symlink_to(tmp_path / "other" / "private.csv")
    root = str((tmp_path / "set").resolve())
    found = find_val_list(FILESYSTEM, root, f"{root}/val", root)
    assert found is not None
    with pytest.raises(ConfigError, match=r"cannot be read \(it is a link that leaves the image set, which ingest\."):
        found.read(FILESYSTEM)
    followed = find_val_list(FILESYSTEM, root, f"{root}/val", "")
    assert followed is not None
    assert followed.read(FILESYSTEM)


def test_val_list_above_a_set_in_a_linked_folder_is_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"real/LOC_val_solution.csv": KAGGLE, "real/set/val/val_1.JPEG": b""})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = find_val_list(FILESYSTEM, f"{tmp_path}/link/set", f"{tmp_path}/link/set/val", f"{tmp_path}/real/set")
    assert found is not None
    assert "val_1" in found.read(FILESYSTEM)


def test_val_list_that_is_a_link_inside_the_set_is_read(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"lists/val.csv": KAGGLE, "val/val_1.JPEG": b""})
    (root / "LOC_val_solution.csv").symlink_to(root / "lists" / "val.csv")
    found = find_val_list(FILESYSTEM, str(root), f"{root}/val", str(root.resolve()))
    assert found is not None
    assert "val_1" in found.read(FILESYSTEM)


def test_val_list_with_an_endless_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "LOC_val_solution.csv").write_bytes(b"x" * 2**18)
    with pytest.raises(ConfigError, match=r"LOC_val_solution\.csv cannot be read \(field larger than field limit"):
        ValList(str(tmp_path / "LOC_val_solution.csv"), "LOC_val_solution.csv").read(FILESYSTEM)


def test_val_list_counts_the_images_that_are_not_there() -> None:
    val_list = ValList("val/val_annotations.txt", "val_annotations.txt")
    assert val_list.missing({"a", "b.x", "c"}, ["a.JPEG", "b.x.png", "d.JPEG"], "val") == {
        "images that val_annotations.txt names and val lacks": 1
    }
    assert val_list.missing({"a"}, ["a.JPEG"], "val") == {}
