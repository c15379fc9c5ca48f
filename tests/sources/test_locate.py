"""Tests of finding the folder of an image set in the folder that a user gives."""

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.image_sets import write_files
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.locate import locate

FILESYSTEM = pafs.LocalFileSystem()
KAGGLE = {
    "ILSVRC/Data/CLS-LOC/train/n01440764/1.JPEG": b"",
    "ILSVRC/Data/CLS-LOC/val/1.JPEG": b"",
    "ILSVRC/Annotations/CLS-LOC/train/n01440764/1.xml": b"",
    "LOC_val_solution.csv": b"",
}


@pytest.mark.parametrize(
    ("files", "inner"),
    [
        (["train/cat/1.jpg"], ""),
        (["cat/1.jpg", "dog/1.jpg"], ""),
        (["cat/1.jpg"], ""),  # a class, if the only one
        (["data/train/cat/1.jpg", "README.md"], "data"),
        (["a/b/train/cat/1.jpg"], "a/b"),
        (["images/cat/1.jpg", "images/dog/1.jpg", "images.txt"], "images"),
        (["val/cat/1.jpg"], ""),
        (["a/bus/1.jpg", "a/train/2.jpg"], "a"),  # train is a class
        (["a/b/c/d/train/cat/1.jpg"], "a/b/c/d"),
        (["test tube/day/1.jpg", "bus/day/1.jpg"], ""),
        (["data/1.jpg"], ""),
    ],
)
def test_locate_follows_folders_that_hold_nothing_else(tmp_path: Path, files: list[str], inner: str) -> None:
    write_files(tmp_path, dict.fromkeys(files, b""))
    assert locate(FILESYSTEM, str(tmp_path), "") == str(tmp_path / inner)


def test_locate_names_the_image_sets_below_a_folder_that_is_none(tmp_path: Path) -> None:
    root = write_files(tmp_path / "one", KAGGLE)
    with pytest.raises(ConfigError, match=r"it holds \S+/one/ILSVRC/Data/CLS-LOC; give that folder"):
        locate(FILESYSTEM, str(root), "")
    assert locate(FILESYSTEM, str(root / "ILSVRC/Data/CLS-LOC"), "") == str(root / "ILSVRC/Data/CLS-LOC")
    root = write_files(tmp_path / "two", {"a/train/cat/1.jpg": b"", "b/train/cat/1.jpg": b""})
    with pytest.raises(ConfigError, match=r"it holds \S+/two/a, \S+/two/b; give one of them"):
        locate(FILESYSTEM, str(root), "")


def test_locate_does_not_follow_links_out_of_the_set(tmp_path: Path) -> None:
    private = write_files(tmp_path / "private", {"cat/1.jpg": b"", "dog/1.jpg": b""})
    (root := tmp_path / "set").mkdir()
    (root / "data").symlink_to(private)
    assert locate(FILESYSTEM, str(root), str(root)) == str(root)
    assert locate(FILESYSTEM, str(root), "") == str(root / "data")
