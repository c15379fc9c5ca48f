"""Tests of the layout of class folders."""

from pathlib import Path

import pytest

from tests.image_sets import by_source, open_set, picture, read_all, write_files
from vlcp_ray.settings import ConfigError

FILES = {
    "train/cat/1.jpg": picture(1),
    "train/cat/deeper/2.PNG": picture(2, "PNG"),
    "train/dog/1.jpg": picture(3),
    'train/dog/it\'s a "dog" ü #1 %20.jpg': picture(4),
    "train/dog/a..b.webp": picture(5, "WEBP"),
    "val/cat/1.jpg": picture(6),
    "val/dog/3.jpeg": picture(7),
}


def test_folder_reads_every_image_once_with_class_and_split(tmp_path: Path) -> None:
    others = {"train/cat/notes.txt": b"no image", "train/cat/.hidden.jpg": b"no", "train/.trash/x.jpg": b"no"}
    source = open_set(write_files(tmp_path / "a set", FILES | others))
    assert source.description == "an image folder with train and val, 2 classes"
    table = read_all(source)
    assert by_source(table, "image") == FILES
    assert by_source(table, "class_key") == {name: name.split("/")[1] for name in by_source(table, "image")}
    assert table["image_id"].to_pylist() == table["source"].to_pylist()


def test_folder_without_splits_is_all_train(tmp_path: Path) -> None:
    table = read_all(open_set(write_files(tmp_path, {"cat/1.jpg": picture(1), "dog/1.jpg": picture(2)})))
    assert table["image_id"].to_pylist() == ["train/cat/1.jpg", "train/dog/1.jpg"]


def test_folder_without_val_uses_test_as_val(tmp_path: Path) -> None:
    files = {"train/cat/1.jpg": picture(1), "test/cat/2.jpg": picture(2)}
    assert read_all(open_set(write_files(tmp_path, files)))["split"].to_pylist() == ["val", "train"]
    table = read_all(open_set(write_files(tmp_path, {"validation/cat/3.jpg": picture(3)})))
    assert by_source(table, "split") == {"train/cat/1.jpg": "train", "validation/cat/3.jpg": "val"}


def test_folder_parts_are_of_wanted_classes_only(tmp_path: Path) -> None:
    files = {f"train/{wnid}/1.jpg": picture(1) for wnid in ("n01440764", "n02102040", "n02979186")}
    source = open_set(write_files(tmp_path, files), classes=["n02979186", "tench, Tinca tinca"])
    assert [part.path for part in source.parts()] == ["train/n01440764", "train/n02979186"]
    assert source.classes.keys == ("n02979186", "n01440764")
    assert source.description.endswith("2 of its 3 classes")


def test_folder_read_skips_done_rows(tmp_path: Path) -> None:
    source = open_set(write_files(tmp_path, {"train/cat/1.jpg": picture(1), "train/cat/2.jpg": picture(2)}))
    assert read_all(source, ["train/cat/1.jpg"])["source"].to_pylist() == ["train/cat/2.jpg"]


def test_folder_val_without_class_folders_is_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"train/cat/1.jpg": picture(1), "val/ILSVRC2012_val_1.JPEG": picture(2)})
    with pytest.raises(ConfigError, match="val has images and no class folders"):
        open_set(root)


def test_folder_two_folders_of_one_class_have_distinct_ids(tmp_path: Path) -> None:
    files = {"train/tench, Tinca tinca/1.jpg": picture(1), "train/n01440764/1.jpg": picture(2)}
    table = read_all(open_set(write_files(tmp_path, files)))
    assert set(table["class_key"].to_pylist()) == {"n01440764"}
    assert len(set(table["image_id"].to_pylist())) == 2


def test_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no class folders"):
        open_set(write_files(tmp_path, {"val/cat/1.jpg": picture(1)}))
