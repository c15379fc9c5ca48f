"""Tests of the parquet layout: classes by name, row groups that are not read, damaged files."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.hostile import parquet_bombs, with_pickled_column
from tests.image_sets import SHARED, by_source, open_set, picture, read_all, write_parquet, write_tar
from vlcp_ray.settings import ConfigError

NAMES = ("airplane", "n01440764", "English springer, English springer spaniel")
KEYS = ("airplane", "n01440764", "n02102040")
ROWS = [(picture(i), f"{i}.jpg", i % 3) for i in range(8)]


def record_reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the row groups whose image bytes are read from now on."""
    read: list[Any] = []
    iter_batches = parquet.ParquetFile.iter_batches

    def recorded(self: Any, size: int, row_groups: list[int], columns: list[str], use_threads: bool) -> Any:
        read.extend(row_groups if columns not in (["label"], ["image.path"]) else [])
        return iter_batches(self, size, row_groups=row_groups, columns=columns, use_threads=use_threads)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", recorded)
    return read


def test_parquet_label_numbers_become_class_keys(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-0.parquet", ROWS, NAMES)
    write_parquet(tmp_path / "data" / "validation-0.parquet", ROWS[:2], NAMES)
    write_parquet(tmp_path / "data" / "test-0.parquet", [(picture(1), "x.jpg", -1)], NAMES)  # the hub's hidden labels
    source = open_set(tmp_path)
    assert source.description == "parquet with 1 train file and 1 val file, 3 classes"
    table = read_all(source)
    train = table.filter(pa.compute.equal(table["split"], "train"))
    assert train["class_key"].to_pylist() == [KEYS[label] for *_, label in ROWS]
    assert train["image"].to_pylist() == [content for content, *_ in ROWS]
    assert train["image_id"].to_pylist()[:2] == ["train/airplane/0.jpg", "train/n01440764/1.jpg"]
    assert train["source"].to_pylist() == [f"data/train-0.parquet#{row}" for row in range(8)]
    assert len(table) == 10


def test_parquet_shuffled_rows_numbers_and_files_give_same_images(tmp_path: Path) -> None:
    """Without file names, as in the hub's CIFAR, the content identifies an image."""
    rows = [(content, None, label) for content, _, label in ROWS]
    write_parquet(tmp_path / "one" / "train-0.parquet", rows, NAMES)
    shuffled = [(content, path, (label + 1) % 3) for content, path, label in random.Random(0).sample(rows, len(rows))]
    names = (NAMES[2], NAMES[0], NAMES[1])
    write_parquet(tmp_path / "two" / "train-b.parquet", shuffled[:5], names)
    write_parquet(tmp_path / "two" / "train-a.parquet", shuffled[5:], names)
    tables = [read_all(open_set(tmp_path / name)).drop_columns("source") for name in ("one", "two")]
    one, two = (table.sort_by("image_id") for table in tables)
    assert one.equals(two)
    assert len(set(one["image_id"].to_pylist())) == 8


def test_parquet_label_numbers_have_the_names_of_their_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [(picture(0), "0.jpg", 0)], ["cat", "dog"])
    write_parquet(tmp_path / "train-1.parquet", [(picture(1), "1.jpg", 0)], ["dog", "cat"])
    assert read_all(open_set(tmp_path))["class_key"].to_pylist() == ["cat", "dog"]


def test_parquet_missing_and_unknown_labels_have_different_keys(tmp_path: Path) -> None:
    rows = [(picture(0), "0.jpg", 0), (picture(1), "1.jpg", None), (picture(2), "2.jpg", 7), (picture(3), "3.jpg", -1)]
    table = read_all(open_set(write_parquet(tmp_path / "train.parquet", rows, ["cat", "2"])))
    assert table["class_key"].to_pylist() == ["cat", "", "#7", ""]
    assert table["reason"].to_pylist() == ["", "no_label", "", "no_label"]


def test_parquet_null_image_has_no_bytes(tmp_path: Path) -> None:
    table = pa.table(
        {"image": pa.array([None, {"bytes": None}], pa.struct({"bytes": pa.binary()})), "label": ["a", "a"]}
    )
    parquet.write_table(table, tmp_path / "train.parquet")
    assert read_all(open_set(tmp_path))["image"].to_pylist() == [b"", b""]


def test_parquet_read_skips_images_of_unwanted_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0, 0, 0, 1, 1, 0, 0, 0, 0]  # three row groups; only the second one has the wanted class
    write_parquet(
        tmp_path / "train.parquet", [(picture(i), f"{i}.jpg", n) for i, n in enumerate(labels)], ["cat", "dog"]
    )
    read = record_reads(monkeypatch)
    source = open_set(tmp_path, classes="dog")
    assert by_source(read_all(source), "image") == {f"train.parquet#{i}": picture(i) for i in (3, 4)}
    assert read == [1]
    assert len(read_all(source, ["train.parquet#3", "train.parquet#4"])) == 0
    assert read == [1]


def test_parquet_label_numbers_without_names_need_class_list(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "train.parquet", [(picture(0), "0.jpg", 1)], None)
    with pytest.raises(ConfigError, match=r"ingest.class_list: the label numbers in column 'label' have no names"):
        open_set(file)
    source = open_set(file, class_list="imagenet1k", classes=["n01443537"])
    assert read_all(source)["class_key"].to_pylist() == ["n01443537"]


def test_parquet_label_names_need_no_class_list(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "train.parquet", [(picture(0), "0.jpg", "cat"), (picture(1), "1.jpg", "tench, Tinca tinca")], None
    )
    source = open_set(tmp_path)
    assert source.classes.keys == ("cat", "n01440764")
    assert read_all(source)["class_key"].to_pylist() == ["cat", "n01440764"]


def test_parquet_without_images_or_broken_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="have no image column; they have text"):
        open_set(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"a.parquet cannot be read as parquet .* download it again"):
        open_set(tmp_path)


def test_parquet_file_in_several_parts_gives_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet(tmp_path / "train.parquet", ROWS, NAMES)
    whole = read_all(open_set(file))
    monkeypatch.setattr("vlcp_ray.sources.parquet._ROWS_PER_PART", 4)
    source = open_set(file)
    assert [(part.start, part.end) for part in source.parts()] == [(0, 2), (2, 3)]
    assert read_all(source).equals(whole)


def test_parquet_damaged_row_group_costs_its_rows_only(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "train.parquet", ROWS, NAMES)
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    table = read_all(open_set(file))
    assert by_source(table, "reason") == {
        f"train.parquet#{row}": "unreadable" if row < 3 else "" for row in range(len(ROWS))
    }
    assert "row group 0 is damaged" in table["detail"][0].as_py()


def test_parquet_damaged_rows_that_are_done_stay_done(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "train.parquet", ROWS, NAMES)
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    table = read_all(open_set(file), ["train.parquet#1", "train.parquet#4"])
    assert [source[-1] for source in table["source"].to_pylist()] == ["0", "2", "3", "5", "6", "7"]


def test_parquet_file_without_footer_beside_good_ones_costs_one_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-1.parquet", ROWS, NAMES)
    for name, content in (("0", b"PAR1 and no more"), ("2", b""), ("3", b"x" * 100 + b"\xff\xff\xff\x7fPAR1")):
        (tmp_path / f"train-{name}.parquet").write_bytes(content)
    table = read_all(open_set(tmp_path))
    bad = {source: reason for source, reason in by_source(table, "reason").items() if reason}
    assert bad == {f"train-{name}.parquet:whole file": "unreadable" for name in "023"}
    assert len(table) == len(ROWS) + 3


@pytest.mark.parametrize("bomb", parquet_bombs())
def test_parquet_bomb_is_rejected_in_little_memory(tmp_path: Path, bomb: str) -> None:
    """The bound of `Parquet`, measured in a process of its own; without it some of these take tens of GiB."""
    size = parquet_bombs()[bomb](tmp_path / "train-1.parquet")
    write_parquet(tmp_path / "train-0.parquet", ROWS[:2], None)
    assert size < 2**20
    code = (
        "import collections, sys; from tests.image_sets import open_set, read_all; import re;"
        "rows = read_all(open_set(sys.argv[1], class_list=sys.argv[2]));"
        "print(*sorted(set(rows['reason'].to_pylist())), *set(rows.slice(0, 2)['reason'].to_pylist()));"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    names = tmp_path / "names.tsv"
    names.write_text("".join(f"{name}\n" for name in NAMES))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(names)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reasons, peak = done.stdout.splitlines()
    assert reasons.split() in (["too_large"], ["unreadable"])
    assert int(peak) < 2**20  # KiB


def test_parquet_single_value_over_max_bytes_is_too_large(tmp_path: Path) -> None:
    rows = [*ROWS[:2], (bytes(100_000), "big.jpg", 0)]
    table = read_all(open_set(write_parquet(tmp_path / "train.parquet", rows, NAMES), max_bytes=50_000))
    assert by_source(table, "reason") == {"train.parquet#0": "", "train.parquet#1": "", "train.parquet#2": "too_large"}
    assert table["image"].to_pylist()[2] == b""


def test_parquet_few_images_many_times_are_read(tmp_path: Path) -> None:
    """A dictionary is no bomb as long as its images fit into memory."""
    rows = [(ROWS[row % 2][0], f"{row}.jpg", 0) for row in range(2_000)]
    rows[0] = (random.Random(0).randbytes(300_000), "big.jpg", 0)
    file = write_parquet(tmp_path / "train.parquet", rows, NAMES, row_group_size=2_000)
    table = read_all(open_set(file))
    images = by_source(table, "image")
    assert [images[f"train.parquet#{row}"] for row in range(2_000)] == [content for content, *_ in rows]


def test_parquet_label_without_utf8_or_too_long_is_a_row(tmp_path: Path) -> None:
    labels = pa.array([b"caf\xe9", b"x" * 2_000, b"cat"]).view(pa.string())
    images = pa.array([picture(i) for i in range(3)])
    parquet.write_table(pa.table({"image": images, "label": labels}), tmp_path / "train.parquet", store_schema=False)
    table = read_all(open_set(tmp_path))
    assert table["class_key"].to_pylist() == ["caf\\xe9", "", "cat"]
    assert table["reason"].to_pylist() == ["", "no_label", ""]


def test_parquet_captions_as_labels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.sources.reader._MAX_CLASSES", 5)
    rows = [(picture(i), f"{i}.jpg", f"a picture number {i}") for i in range(8)]
    with pytest.raises(ConfigError, match="the labels of the image set have more than 5 values"):
        open_set(write_parquet(tmp_path / "train.parquet", rows, None))


@pytest.mark.parametrize(
    "metadata", [b"[" * 100_000, b"[]", b'{"info": 3}', b'{"info": {"features": {"x": {}}}}', b"{"]
)
def test_parquet_metadata_that_is_not_of_datasets_is_ignored(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": [picture(0)], "label": ["cat"]}).replace_schema_metadata({"huggingface": metadata})
    parquet.write_table(table, tmp_path / "train.parquet")
    assert read_all(open_set(tmp_path))["class_key"].to_pylist() == ["cat"]


def test_parquet_image_column_of_paths_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": ["a.jpg"], "label": ["cat"]}), tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match="column 'image' of the tables is string, not the bytes of images"):
        open_set(tmp_path)


def test_parquet_of_real_cifar_has_exact_counts() -> None:
    if not (SHARED / "cifar10").exists():
        pytest.skip(f"{SHARED / 'cifar10'} is not there")
    source = open_set(SHARED / "cifar10")
    assert source.classes.names[:3] == ("airplane", "automobile", "bird")
    table = read_all(source)
    assert table.group_by("split").aggregate([("source", "count")]).sort_by("split").to_pylist() == [
        {"split": "train", "source_count": 8000},
        {"split": "val", "source_count": 2000},
    ]
    assert len(set(table["image_id"].to_pylist())) == 10_000


@pytest.mark.parametrize("column", ["label", "image"])
def test_parquet_column_of_pickled_objects_is_refused_and_runs_nothing(tmp_path: Path, column: str) -> None:
    import ray.data  # noqa: F401  # registers the type, as in the workers of ingest

    file = write_parquet(tmp_path / "set" / "train-0.parquet", ROWS, NAMES)
    parquet.write_table(with_pickled_column(parquet.read_table(file), column, tmp_path / "EXECUTED"), file)
    with pytest.raises(ConfigError, match=f"column '{column}'"):
        read_all(open_set(tmp_path / "set"))
    assert not (tmp_path / "EXECUTED").exists()


def test_parquet_configurations_are_chosen(tmp_path: Path) -> None:
    for number, name in enumerate(("160px", "full_size")):
        write_parquet(tmp_path / name / "train-0.parquet", [(picture(number), "1.jpg", 0)], ["cat"])
        write_parquet(tmp_path / name / "validation" / "0.parquet", [(picture(9), "2.jpg", 0)], ["cat"])
    with pytest.raises(
        ConfigError, match=r'has the configurations 160px, full_size; .* ingest\.config = "160px", or .*"parquet"'
    ):
        open_set(tmp_path)
    with pytest.raises(ConfigError, match=r"ingest\.config: \S+ has no folder 320px; it has 160px, full_size"):
        open_set(tmp_path, config="320px")
    source = open_set(tmp_path, config="full_size")
    assert source.description == "parquet with 1 train file and 1 val file, 1 class"
    assert by_source(read_all(source), "image")["train-0.parquet#0"] == picture(1)
    assert read_all(open_set(tmp_path, layout="parquet")).num_rows == 4


def test_parquet_of_the_hubs_conversion_has_its_splits(tmp_path: Path) -> None:
    write_parquet(tmp_path / "default" / "train" / "0000.parquet", [(picture(1), "1.jpg", 0)], ["cat"])
    write_parquet(tmp_path / "default" / "test" / "0000.parquet", [(picture(2), "2.jpg", 0)], ["cat"])
    assert open_set(tmp_path).description == "parquet with 1 train file and 1 val file, 1 class"


def test_parquet_class_key_is_the_column_of_the_label(tmp_path: Path) -> None:
    table = pa.table({"image": [picture(1), picture(2)], "label": ["x", "y"], "kind": ["cat", "dog"]})
    parquet.write_table(table, tmp_path / "train.parquet")
    assert open_set(tmp_path).classes.keys == ("x", "y")
    assert open_set(tmp_path, class_key="kind").classes.keys == ("cat", "dog")
    with pytest.raises(ConfigError, match="no column 'sort'; they have image, label, kind"):
        open_set(tmp_path, class_key="sort")


def test_parquet_labels_in_lists_are_read(tmp_path: Path) -> None:
    table = pa.table({"image": [picture(i) for i in range(3)], "label": [["cat"], ["dog"], ["cat", "dog"]]})
    parquet.write_table(table, tmp_path / "train.parquet")
    source = open_set(tmp_path)
    assert source.classes.keys == ("cat", "dog")
    assert by_source(read_all(source), "class_key") == {
        "train.parquet#0": "cat",
        "train.parquet#1": "dog",
        "train.parquet#2": "",
    }


def test_parquet_equal_file_names_are_no_identity(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [(picture(i), "image.jpg", "cat") for i in range(5)], None)
    ids = read_all(open_set(tmp_path))["image_id"].to_pylist()
    assert len(set(ids)) == 5
    write_parquet(tmp_path / "train.parquet", [(picture(0), "image.jpg", "cat")], None)
    assert read_all(open_set(tmp_path))["image_id"].to_pylist() == ["train/cat/image.jpg"]


def test_parquet_ids_are_listed_without_reading_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", None, "5.jpg", "", "7.jpg", "8.jpg", "9.jpg", "x" * 5_000]
    rows = [(picture(i), name, i % 2) for i, name in enumerate(names)]
    write_parquet(tmp_path / "train.parquet", rows, ["cat", "dog"])
    source = open_set(tmp_path)
    whole = read_all(source)
    read = record_reads(monkeypatch)
    listed = {image.source: image.image_id for part in source.parts() for image in source.images(part, ids=True)}
    assert listed == by_source(whole, "image_id")
    assert read == [1, 2, 3]  # row group 0 has all names
    read.clear()
    dogs = open_set(tmp_path, classes="dog")
    found = {image.source: image.image_id for part in dogs.parts() for image in dogs.images(part, ids=True)}
    assert found == {name: one for name, one in listed.items() if "/dog/" in one}
    assert read == []  # the rows without a name are cats


def test_parquet_ids_of_equal_or_no_names_are_those_of_read(tmp_path: Path) -> None:
    for name in ("image.jpg", None):
        write_parquet(tmp_path / "train.parquet", [(picture(i), name, "cat") for i in range(5)], None)
        source = open_set(tmp_path)
        listed = {image.source: image.image_id for part in source.parts() for image in source.images(part, ids=True)}
        assert listed == by_source(read_all(source), "image_id")
        assert len(set(listed.values())) == 5


@pytest.mark.parametrize("files", [1, 3])
def test_parquet_equal_file_names_in_row_groups_of_one_row_are_no_identity(tmp_path: Path, files: int) -> None:
    rows = [(picture(i), "image.jpg", "cat") for i in range(3)]
    for number in range(files):
        some = rows if files == 1 else [rows[number]]
        write_parquet(tmp_path / f"train-{number}.parquet", some, None, row_group_size=1)
    assert len(set(read_all(open_set(tmp_path))["image_id"].to_pylist())) == 3


def test_parquet_tables_beside_tars_of_splits_are_no_images(tmp_path: Path) -> None:
    for split in ("train", "val"):
        members = [("0.png", picture(1, "PNG")), ("0.cls", b"cat")]
        write_tar(tmp_path / split / "00000.tar", members)
        parquet.write_table(pa.table({"url": ["x"], "key": ["0"]}), tmp_path / split / "00000.parquet")
    assert open_set(tmp_path).layout == "webdataset"
    write_parquet(tmp_path / "train" / "other.parquet", ROWS, NAMES)
    with pytest.raises(ConfigError, match="the tables have no image column"):
        open_set(tmp_path)
