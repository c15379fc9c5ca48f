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
    found = find_val_list(FILESYSTEM, str(root), f"{root}/val")
    assert found is not None
    assert found.read(FILESYSTEM) == {"ImageId": "PredictionString", "val_1": "n01440764", "val_2": "n02102040"}


def test_find_val_list_beside_the_images_comes_first(tmp_path: Path) -> None:
    annotations = b"val_0.JPEG\tn01443537\t0\t0\t9\t9\nval_1.x.JPEG\tn01629819\t0\n"
    root = write_files(tmp_path, {"LOC_val_solution.csv": KAGGLE, "val/val_annotations.txt": annotations})
    found = find_val_list(FILESYSTEM, str(root), f"{root}/val")
    assert found is not None
    assert found.read(FILESYSTEM) == {"val_0": "n01443537", "val_1.x": "n01629819"}


def test_find_val_list_without_one_is_none(tmp_path: Path) -> None:
    (tmp_path / "LOC_val_solution.csv").mkdir()
    assert find_val_list(FILESYSTEM, str(tmp_path / "a/b/c/d/e"), str(tmp_path / "a/b/c/d/e/val")) is None


def test_val_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "LOC_val_solution.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"LOC_val_solution\.csv cannot be read"):
        ValList(str(tmp_path / "LOC_val_solution.csv"), "LOC_val_solution.csv").read(FILESYSTEM)
