"""Tests of the layout of datasets' save_to_disk."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from tests.image_sets import by_source, open_set, picture, read_all
from vlcp_ray.settings import ConfigError

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})


def save(root: Path, splits: dict[str, list[Any]], **options: Any) -> Path:
    """Save images, of random pixels, with the labels of each split."""
    made = {}
    for number, (split, labels) in enumerate(splits.items()):
        rows = [{"bytes": picture(100 * number + row), "path": None} for row in range(len(labels))]
        made[split] = datasets.Dataset.from_dict({"image": rows, "label": labels}, features=FEATURES)
    datasets.DatasetDict(made).save_to_disk(str(root), **options)
    return root


def test_arrow_has_the_rows_of_every_split(tmp_path: Path) -> None:
    splits: dict[str, list[Any]] = {"train": [0, 1, 0, None, 1], "validation": [1, 0]}
    root = save(tmp_path / "set", splits, num_shards={"train": 2, "validation": 1})
    source = open_set(root)
    assert source.description == "a saved dataset with 2 train files and 1 val file, 2 classes"
    table = read_all(source)
    keys = by_source(table, "class_key")
    assert keys == {
        "train/data-00000-of-00002.arrow#0": "cat",
        "train/data-00000-of-00002.arrow#1": "dog",
        "train/data-00000-of-00002.arrow#2": "cat",
        "train/data-00001-of-00002.arrow#0": "",
        "train/data-00001-of-00002.arrow#1": "dog",
        "validation/data-00000-of-00001.arrow#0": "dog",
        "validation/data-00000-of-00001.arrow#1": "cat",
    }
    assert by_source(table, "image")["train/data-00001-of-00002.arrow#1"] == picture(4)
    assert set(by_source(table, "split").values()) == {"train", "val"}


def test_arrow_reads_wanted_classes_and_what_is_not_done(tmp_path: Path) -> None:
    source = open_set(save(tmp_path / "set", {"train": [0, 1, 0, 1]}), classes=["dog"])
    table = read_all(source, ["train/data-00000-of-00001.arrow#1"])
    assert table["source"].to_pylist() == ["train/data-00000-of-00001.arrow#3"]
    (part,) = source.parts()
    listed = [(image.source, image.image_id) for image in source.images(part, ids=True)]
    whole = read_all(source)
    assert listed == list(zip(whole["source"].to_pylist(), whole["image_id"].to_pylist(), strict=True))


def test_arrow_of_a_set_without_splits_is_train_and_skips_caches(tmp_path: Path) -> None:
    save(tmp_path / "set", {"train": [0, 1]})
    root = tmp_path / "set" / "train"
    (root / "cache-0123456789.arrow").write_bytes((root / "data-00000-of-00001.arrow").read_bytes())
    source = open_set(root)
    assert source.description == "a saved dataset with 1 train file, 2 classes"
    assert len(read_all(source)) == 2


def test_arrow_that_is_cut_short_costs_its_end(tmp_path: Path) -> None:
    root = save(tmp_path / "set", {"train": [0, 1], "test": [0, 1]})
    file = root / "train" / "data-00000-of-00001.arrow"
    schema, kind = pa.ipc.open_stream(file).schema, FEATURES.arrow_schema
    assert schema.names == kind.names
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for row in range(3):
            batch = {"image": [{"bytes": picture(row), "path": None}], "label": [row % 2]}
            writer.write_batch(pa.record_batch(batch, schema=schema))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 5 // 6])
    table = read_all(open_set(root))
    train = table.filter(pa.compute.equal(table["split"], "train"))
    assert train["reason"].to_pylist() == ["", "", "unreadable"]
    assert train["source"].to_pylist()[2] == "train/data-00000-of-00001.arrow:after 1"
    file.write_bytes(b"x" * 100)
    assert by_source(read_all(open_set(root)), "reason")["train/data-00000-of-00001.arrow:whole file"] == "unreadable"


def test_arrow_without_a_label_names_the_columns(tmp_path: Path) -> None:
    rows = [{"bytes": picture(1), "path": None}]
    made = datasets.Dataset.from_dict({"image": rows, "text": ["x"]}).cast_column("image", datasets.Image())
    made.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ConfigError, match="have no label column; they have image, text"):
        open_set(tmp_path / "set")


def test_arrow_equal_file_names_are_no_identity(tmp_path: Path) -> None:
    rows = [{"bytes": picture(row), "path": "image.jpg"} for row in range(3)]
    made = datasets.Dataset.from_dict({"image": rows, "label": [0, 1, 0]}, features=FEATURES)
    made.save_to_disk(str(tmp_path / "set"))
    assert len(set(read_all(open_set(tmp_path / "set"))["image_id"].to_pylist())) == 3
