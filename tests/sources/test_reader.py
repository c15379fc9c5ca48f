"""Tests of the functions that all layouts share: tables of rows, image ids, splits and shards."""

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.image_sets import write_files
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import reader
from vlcp_ray.sources.reader import (
    RAW,
    Row,
    check_class_count,
    find_shards,
    has_extension,
    has_shards,
    image_id,
    near_shards,
    split_of,
    split_of_folder,
    suffix_among,
    tables,
)


def test_tables_of_many_rows_have_at_most_256_rows() -> None:
    rows = [Row(str(number), "cat", "train", str(number), b"x") for number in range(600)]
    batches = list(tables(rows))
    assert [len(batch) for batch in batches] == [256, 256, 88]
    assert all(batch.schema == RAW for batch in batches)
    assert [text for batch in batches for text in batch["source"].to_pylist()] == [row.source for row in rows]


def test_tables_of_large_rows_end_at_32_mib() -> None:
    rows = [Row(str(number), "cat", "train", str(number), bytes(20 * 2**20)) for number in range(3)]
    assert [len(batch) for batch in tables(rows)] == [2, 1]


def test_image_id_drops_parts_that_leave_the_folder() -> None:
    assert image_id("train", "cat", "../a/./b//1.jpg") == "train/cat/a/b/1.jpg"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet1k-train-0000", "train"),
        ("Training", "train"),
        ("validation", "val"),
        ("ILSVRC2012_val_1", "val"),
        ("test-00000-of-00001", "test"),
        ("trainer", ""),
        ("n01440764", ""),
    ],
)
def test_split_of_name_uses_whole_words(name: str, split: str) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("train.X1", "train"),
        ("val_256", "val"),
        ("train2017", "train"),
        ("validation", "val"),
        ("TEST", "test"),
        ("test tube", ""),
        ("train station", ""),
        ("bullet_train", ""),
        ("trainer", ""),
        ("valley", ""),
        ("training_set", "train"),
        ("test images", "test"),
        ("train_stations", ""),
    ],
)
def test_split_of_folder_is_of_the_whole_name(name: str, split: str) -> None:
    assert split_of_folder(name) == split


def test_has_shards_in_the_splits_of_a_configuration(tmp_path: Path) -> None:
    write_files(tmp_path, {"default/partial-train/0000.parquet": b"", "cat/day/0.tar": b""})
    assert has_shards(pafs.LocalFileSystem(), str(tmp_path), "parquet")
    assert not has_shards(pafs.LocalFileSystem(), str(tmp_path), "tar")


def test_find_shards_skips_hidden_files_and_test_beside_val(tmp_path: Path) -> None:
    names = ("train-0.tar", "data/val-0.tar", "data/test-0.tar", ".cache/train-1.tar", "train.txt")
    write_files(tmp_path, dict.fromkeys(names, b""))
    filesystem = pafs.LocalFileSystem()
    assert find_shards(filesystem, str(tmp_path), "tar", "")[1] == {"data/val-0.tar": "val", "train-0.tar": "train"}
    assert has_shards(filesystem, str(tmp_path), "tar")
    assert not has_shards(filesystem, str(tmp_path), "parquet")
    with pytest.raises(ConfigError, match=r"has no \.parquet file"):
        find_shards(filesystem, str(tmp_path), "parquet", "")


def test_extensions_of_several_parts_are_found_in_any_case(tmp_path: Path) -> None:
    kinds, filesystem = ("tar", "tar.gz"), pafs.LocalFileSystem()
    names = ("train-0.tar", "train-1.TAR.GZ", "val/0.tar.gz", "labels.json.gz", "x.targz", "tar", "tar.gz")
    write_files(tmp_path / "set", dict.fromkeys(names, b""))
    (tmp_path / "other").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "other")
    found = {"train-0.tar": "train", "train-1.TAR.GZ": "train", "val/0.tar.gz": "val"}
    root, limit = str(tmp_path / "set"), str(tmp_path / "set")
    assert find_shards(filesystem, root, kinds, limit)[1] == found | {"link": "train"}  # told when it is opened
    assert find_shards(pafs.SubTreeFileSystem(str(tmp_path), filesystem), "set", kinds, "")[1] == found
    assert sorted(near_shards(filesystem, root, kinds)) == [f"{root}/{name}" for name in sorted(found)]
    assert [suffix_among(name, kinds) for name in names[:3]] == [".tar", ".TAR.GZ", ".tar.gz"]
    assert not any(has_extension(name, kinds) for name in names[3:])


def test_check_class_count_takes_as_many_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_CLASSES", 3)
    check_class_count({"a", "b", "c"})
    with pytest.raises(ConfigError, match=r"more than 3 values, so they are no classes; select classes with"):
        check_class_count({"a", "b", "c", "d"})


def test_tables_count_the_bytes_of_names_too() -> None:
    rows = [Row(str(i), "cat", "train", "n" * 2**20, b"x" * 2**20) for i in range(40)]
    assert [len(table) for table in tables(rows)] == [16, 16, 8]
