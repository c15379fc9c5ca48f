"""Tests of finding the folder of an image set in the folder that a user gives."""

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.image_sets import write_files, write_tar
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.locate import has_data, has_images, holds_images, locate

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


@pytest.mark.parametrize("end", ["tar", "tar.gz", "tgz"])
def test_locate_follows_the_folder_that_a_tar_was_unpacked_to(tmp_path: Path, end: str) -> None:
    root = write_files(tmp_path, {"set/cat/1.jpg": b"", "set/dog/1.jpg": b"", f"set.{end}": b""})
    assert locate(FILESYSTEM, str(root), "") == str(root / "set")
    write_tar(root / f"set.{end}", [("1.jpg", b""), ("1.cls", b"cat")])
    assert locate(FILESYSTEM, str(root), "") == str(root)


@pytest.mark.parametrize("end", ["tar", "tgz"])
def test_locate_names_the_sets_of_tars_below_a_folder(tmp_path: Path, end: str) -> None:
    root = write_files(tmp_path, {f"x/{name}/train/0.{end}": b"" for name in "ab"})
    with pytest.raises(ConfigError, match=r"it holds \S+/x/a, \S+/x/b; give one of them"):
        locate(FILESYSTEM, str(root), "")


def test_has_data_is_of_images_tables_and_tars(tmp_path: Path) -> None:
    for name, images, data in (
        ("1.JPG", True, True),
        ("1.npz", True, True),
        ("1.tar", False, True),
        ("1.TGZ", False, True),
        ("1.txt", False, False),
    ):
        folder = str(write_files(tmp_path / name, {name: b""}))
        assert (has_images(FILESYSTEM, folder), has_data(FILESYSTEM, folder)) == (images, data)
        assert holds_images(FILESYSTEM, folder) == images


def test_locate_does_not_follow_links_out_of_the_set(tmp_path: Path) -> None:
    private = write_files(tmp_path / "private", {"cat/1.jpg": b"", "dog/1.jpg": b""})
    (root := tmp_path / "set").mkdir()
    (root / "data").symlink_to(private)
    assert locate(FILESYSTEM, str(root), str(root)) == str(root)
    assert locate(FILESYSTEM, str(root), "") == str(root / "data")
