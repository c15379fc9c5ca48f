"""Tests of the layout of datasets' save_to_disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
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


def write_stream(file: Path, batches: list[dict[str, Any]], compression: str | None = None) -> Path:
    """Write batches of columns as the only stream of a saved dataset without splits, and return its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "state.json").write_text("{}")
    records = [pa.record_batch(batch) for batch in batches]
    options = pa.ipc.IpcWriteOptions(compression=compression, emit_dictionary_deltas=True)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, records[0].schema, options=options) as writer:
        for record in records:
            writer.write_batch(record)
    return file.parent


def columns(images: list[bytes], names: list[str | None], labels: Any) -> dict[str, Any]:
    """Return the columns of a batch."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": image, "path": name} for image, name in zip(images, names, strict=True)]
    return {"image": pa.array(rows, kind), "label": labels}


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


def test_arrow_equal_file_names_in_batches_of_one_row_are_no_identity(tmp_path: Path) -> None:
    batches = [columns([picture(row)], ["image.jpg"], ["cat"]) for row in range(3)]
    root = write_stream(tmp_path / "set" / "data.arrow", batches)
    assert len(set(read_all(open_set(root))["image_id"].to_pylist())) == 3


def test_arrow_batch_that_unpacks_to_too_much_is_damage(tmp_path: Path) -> None:
    good = columns([picture(1)], ["1.jpg"], ["cat"])
    bomb = columns([bytes(100_000_000)] * 3, ["2.jpg", "3.jpg", "4.jpg"], ["cat"] * 3)
    root = write_stream(tmp_path / "set" / "data.arrow", [good, bomb, good], "zstd")
    assert (root / "data.arrow").stat().st_size < 2**16
    table = read_all(open_set(root, max_bytes=200_000_000))
    assert by_source(table, "reason") == {"data.arrow#0": "", "data.arrow:after 0": "unreadable"}
    assert "a batch takes 300" in table["detail"][1].as_py()


def test_arrow_batch_takes_no_more_than_the_limit_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []

    @contextmanager
    def recorded(size: int) -> Iterator[None]:
        limits.append(size)
        yield

    monkeypatch.setattr("vlcp_ray.sources.arrow.limit_growth", recorded)
    root = write_stream(tmp_path / "set" / "data.arrow", [columns([picture(1)], ["1.jpg"], ["cat"])])
    read_all(open_set(root, max_bytes=2**20))
    assert set(limits) == {2**31 + 8 * 2**20}


def test_arrow_batch_of_rows_without_end_is_damage(tmp_path: Path) -> None:
    rows = 2**21 + 1
    good = {"image": pa.array([picture(1)], pa.binary()), "label": pa.array(["cat"])}
    many = {"image": pa.nulls(rows, pa.binary()), "label": pa.nulls(rows, pa.string())}
    root = write_stream(tmp_path / "set" / "data.arrow", [good, many], "zstd")
    table = read_all(open_set(root))
    assert by_source(table, "reason") == {"data.arrow#0": "", "data.arrow:after 0": "unreadable"}
    assert "the limit is 2097152" in table["detail"][1].as_py()


def test_arrow_long_label_of_many_rows_is_kept_once(tmp_path: Path) -> None:
    labels = pa.DictionaryArray.from_arrays(pa.array(np.arange(20_000) % 2), pa.array(["cat", "x" * 10_000_000]))
    rows = {"image": pa.array([b"x"] * 20_000, pa.binary()), "label": labels}
    table = read_all(open_set(write_stream(tmp_path / "set" / "data.arrow", [rows])))
    assert table["class_key"].to_pylist().count("cat") == 10_000
    assert table["reason"].to_pylist().count("no_label") == 10_000
