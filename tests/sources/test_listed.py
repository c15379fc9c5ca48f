"""Tests of the layouts whose images are named by lists."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.image_sets import by_source, open_set, picture, read_all, write_files, write_parquet, write_tar
from vlcp_ray.settings import ConfigError

FOUR = {f"train/{i}.jpg": picture(i) for i in range(4)}
CSV = b"file_name,label\n0.jpg,cat\n1.jpg,dog\n2.jpg,cat\n3.jpg,dog\n"


def test_metadata_names_the_classes_of_the_images_beside_it(tmp_path: Path) -> None:
    files = FOUR | {"train/metadata.csv": b"\xef\xbb\xbf" + CSV, "validation/0.jpg": picture(9)}
    files["validation/metadata.jsonl"] = b'\xef\xbb\xbf{"file_name": "0.jpg", "label": "dog", "text": "a dog"}\n\n'
    source = open_set(write_files(tmp_path, files))
    assert source.description == "the images of metadata.csv and metadata.jsonl with train and val, 2 classes"
    table = read_all(source)
    assert by_source(table, "class_key") == {
        "train/0.jpg": "cat",
        "train/1.jpg": "dog",
        "train/2.jpg": "cat",
        "train/3.jpg": "dog",
        "validation/0.jpg": "dog",
    }
    assert by_source(table, "split")["validation/0.jpg"] == "val"
    assert by_source(table, "image")["train/3.jpg"] == picture(3)
    assert read_all(source, ["train/0.jpg"]).num_rows == 4
    assert set(by_source(read_all(open_set(tmp_path, classes=["cat"])), "class_key")) == {"train/0.jpg", "train/2.jpg"}


def test_metadata_of_the_whole_set_has_splits_in_a_column_or_in_paths(tmp_path: Path) -> None:
    lines = ["file_name,class,split", "images/a.jpg,cat,train", "images/b.jpg,dog,test", "val/c.jpg,dog,"]
    files = dict.fromkeys(("images/a.jpg", "images/b.jpg", "val/c.jpg"), picture(1))
    source = open_set(write_files(tmp_path, files | {"metadata.csv": "\n".join(lines).encode()}))
    assert by_source(read_all(source), "split") == {"images/a.jpg": "train", "val/c.jpg": "val"}


def test_metadata_file_names_with_split_words_are_no_splits(tmp_path: Path) -> None:
    names = ("photo of a train.jpg", "train.jpg", "test.png", "val.1.jpg")
    lines = ["file_name,label", *(f"{name},{number % 2}x" for number, name in enumerate(names))]
    files = dict.fromkeys(names, picture(1)) | {"metadata.csv": "\n".join(lines).encode()}
    assert set(by_source(read_all(open_set(write_files(tmp_path, files))), "split").values()) == {"train"}


def test_metadata_beside_class_folders_is_layout_folder(tmp_path: Path) -> None:
    files = {"train/cat/0.jpg": picture(0), "train/dog/1.jpg": picture(1)}
    files["train/metadata.csv"] = b"file_name,text\ncat/0.jpg,a cat\n"
    assert open_set(write_files(tmp_path, files)).description.startswith("an image folder")


def test_metadata_label_numbers_have_the_names_of_the_class_list(tmp_path: Path) -> None:
    root = write_files(tmp_path / "set", FOUR | {"train/metadata.csv": CSV.replace(b"cat", b"1").replace(b"dog", b"0")})
    (tmp_path / "list.txt").write_text("dog\ncat\n")
    source = open_set(root, class_list=str(tmp_path / "list.txt"))
    assert source.classes.keys == ("cat", "dog")
    assert by_source(read_all(source), "class_key")["train/0.jpg"] == "cat"


def test_metadata_files_that_are_missing_or_outside_are_rejected(tmp_path: Path) -> None:
    write_files(tmp_path, {"private.jpg": picture(9)})
    root = write_files(tmp_path / "set", {"0.jpg": picture(0), "metadata.csv": CSV})
    (root / "1.jpg").symlink_to(tmp_path / "private.jpg")
    reasons = by_source(read_all(open_set(root)), "reason")
    assert reasons == {"0.jpg": "", "1.jpg": "unreadable", "2.jpg": "unreadable", "3.jpg": "unreadable"}


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"file_name,text\n0.jpg,x\n", {}, "has the columns file_name, text, none of which names a class"),
        (b"name,label\n0.jpg,x\n", {}, "has no column file_name; it has name, label"),
        (b"file_name,label\n0.jpg,x\n", {"class_key": "kind"}, "has no column 'kind'; it has file_name, label"),
        (b"file_name,label\n,x\n", {}, "row 1 has no file_name"),
        (b"file_name,label\n../0.jpg,x\n", {}, r"row 1: \.\./0.jpg leaves the image set"),
        (b"file_name,label\n/etc/0.jpg,x\n", {}, "row 1: /etc/0.jpg leaves the image set"),
        (b"file_name,label\n0.jpg," + b"x" * 2000, {}, "row 1: label has 2000 characters, and is no class"),
        (b"\xff\xfe", {}, r"metadata\.csv cannot be read"),
        (b"file_name,label\n..,x\n", {}, r"row 1: \.\. leaves the image set"),
        (b"file_name,label\n0.jpg,x\n./0.jpg,y\n", {}, "row 2 names 0.jpg again; keep one row of each image"),
        (b"file_name,label,split\n0.jpg,x,held-out\n", {}, "row 1 has the split 'held-out'; write one of .* train"),
        (b"file_name,label,text\n0.jpg,x," + b"x" * 2**18, {}, r"line \d cannot be read \(field larger than"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes, settings: dict[str, str], message: str
) -> None:
    root = write_files(tmp_path, {"0.jpg": picture(0), "metadata.csv": content})
    with pytest.raises(ConfigError, match=message):
        open_set(root, **settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "line 1 is no JSON"), (b"\n[1]", "line 2 is no JSON object"), (b"[" * 10**5, "line 1 is no JSON")],
)
def test_metadata_of_broken_json_names_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_set(write_files(tmp_path, {"0.jpg": picture(0), "metadata.jsonl": content}))


CLASSES = {f"{split}/{name}/{i}.jpg": picture(i) for split in ("train", "val") for name in "ab" for i in range(2)}
OTHER = {"metadata.csv": b"key,value\nlicense,cc\n"}
NAMED = {"metadata.csv": b"file_name,label\n0.jpg,cat\n"}


@pytest.mark.parametrize("other", [OTHER, NAMED, {"val/metadata.csv": b"file_name,label\na/0.jpg,cat\n"}])
def test_metadata_beside_splits_of_class_folders_is_layout_folder(tmp_path: Path, other: dict[str, bytes]) -> None:
    source = open_set(write_files(tmp_path, CLASSES | other))
    assert source.description == "an image folder with train and val, 2 classes"


def test_metadata_of_a_flat_val_beside_class_folders_is_layout_folder(tmp_path: Path) -> None:
    files = {"train/a/0.jpg": picture(0), "val/1.jpg": picture(1), "val/metadata.csv": b"file_name,label\n1.jpg,a\n"}
    with pytest.raises(ConfigError, match="val has images and no class folders"):
        open_set(write_files(tmp_path, files))


@pytest.mark.parametrize("other", [OTHER, NAMED])
def test_metadata_beside_tars_or_parquet_files_is_their_layout(tmp_path: Path, other: dict[str, bytes]) -> None:
    write_files(tmp_path / "tars", other)
    write_tar(tmp_path / "tars" / "train.tar", [("1.jpg", picture(1)), ("1.cls", b"cat")])
    assert open_set(tmp_path / "tars").layout == "webdataset"
    write_files(tmp_path / "tables", other)
    write_parquet(tmp_path / "tables" / "data" / "train-0.parquet", [(picture(1), "1.jpg", 0)], ["cat"])
    assert open_set(tmp_path / "tables").layout == "parquet"


def test_metadata_of_something_else_beside_arrays_is_layout_npz(tmp_path: Path) -> None:
    arrays = {"train_images": np.zeros((2, 8, 8, 3), np.uint8), "train_labels": np.arange(2)}
    np.savez(write_files(tmp_path / "set", OTHER) / "set.npz", **arrays)
    (tmp_path / "list.txt").write_text("dog\ncat\n")
    assert open_set(tmp_path / "set", class_list=str(tmp_path / "list.txt")).layout == "npz"


@pytest.mark.parametrize(
    ("name", "content", "is_read"),
    [
        ("metadata.csv", b'text,"file_name",label\n"two\nlines",images/deep/0.jpg,cat\n', True),
        ("metadata.jsonl", b'\n{"file_name": "images/deep/0.jpg", "label": "cat"}\n', True),
        ("metadata.csv", b"key,value\nfile_name,x\n", False),
        ("metadata.jsonl", b'{"key": "file_name"}\n', False),
        ("metadata.jsonl", b"[" * 2**17, False),
    ],
)
def test_metadata_without_images_beside_it_is_known_by_its_first_line(
    tmp_path: Path, name: str, content: bytes, is_read: bool
) -> None:
    root = write_files(tmp_path, {"images/deep/0.jpg": picture(0), name: content})
    if is_read:
        assert by_source(read_all(open_set(root)), "class_key") == {"images/deep/0.jpg": "cat"}
    else:
        assert open_set(root).layout == "folder"


def test_metadata_that_is_a_link_out_of_the_set_is_not_read(tmp_path: Path) -> None:
    root = write_files(tmp_path / "set", {"0.jpg": picture(0)})
    write_files(tmp_path, NAMED)
    (root / "metadata.csv").symlink_to(tmp_path / "metadata.csv")
    with pytest.raises(ConfigError, match=r"metadata\.csv cannot be read \(it is a link that leaves the image set"):
        open_set(root)
    assert read_all(open_set(root, follow_links=True)).num_rows == 1


def test_metadata_file_names_that_no_disk_has_are_rejected(tmp_path: Path) -> None:
    names = ("0.jpg", "a\0b.jpg", f"{'ü' * 128}.jpg", "/".join(["x" * 100] * 50), "\ud800.jpg")
    lines = [json.dumps({"file_name": name, "label": "cat"}) for name in names]
    files = {"0.jpg": picture(0), "metadata.jsonl": "\n".join(lines).encode()}
    details = by_source(read_all(open_set(write_files(tmp_path, files))), "detail")
    assert details["0.jpg"] == ""
    assert details["a\0b.jpg"] == "a file name with a NUL"
    assert details[names[2]] == "a file name with a part of 260 bytes, the limit is 255"
    assert details[names[3]] == "a file name of 5049 characters, the limit is 4096"
    assert details["\\ud800.jpg"].startswith("FileNotFoundError")


def test_metadata_images_of_a_store_are_read_without_asking_for_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryFileSystem()
    for number in range(3):
        store.pipe(f"/listed/{number}.jpg", picture(number))
    store.pipe("/listed/metadata.csv", CSV)
    source = open_set("memory://listed")
    asked = list[str]()
    info = MemoryFileSystem.info

    def counted(self: MemoryFileSystem, path: str, **options: Any) -> Mapping[str, Any]:
        asked.append(path)
        found: Mapping[str, Any] = info(self, path, **options)
        return found

    monkeypatch.setattr(MemoryFileSystem, "info", counted)
    part = source.parts()[0]
    assert [file.problem for file in source._files(part, ())] == [""] * 4  # type: ignore[attr-defined]
    assert asked == []
    reasons = by_source(read_all(source), "reason")
    assert reasons == {"0.jpg": "", "1.jpg": "", "2.jpg": "", "3.jpg": "unreadable"}


def test_metadata_images_that_are_too_large_are_rejected(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"0.jpg": picture(0, size=(300, 300)), "metadata.csv": NAMED["metadata.csv"]})
    assert by_source(read_all(open_set(root, max_bytes=2**10)), "reason") == {"0.jpg": "too_large"}


@pytest.mark.parametrize(
    ("values", "splits"),
    [
        (["train", "Training", "dev", ""], ["train", "train", "val", "train"]),
        (["train", "eval", "evaluation", "test"], ["train", "val", "val", None]),
        (["train", "valid", "dev", "testing"], ["train", "val", None, None]),
        (["", " validation ", "val", "evaluation"], ["train", "val", "val", None]),
        (["train", "test", "TESTING", "train"], ["train", "val", "val", "train"]),
    ],
)
def test_metadata_split_values_are_those_of_usual_lists(
    tmp_path: Path, values: list[str], splits: list[str | None]
) -> None:
    lines = ["file_name,label,split", *(f"{i}.jpg,{i % 2}x,{value}" for i, value in enumerate(values))]
    files = {f"{i}.jpg": picture(i) for i in range(4)} | {"metadata.csv": "\n".join(lines).encode()}
    found = by_source(read_all(open_set(write_files(tmp_path, files))), "split")
    assert [found.get(f"{i}.jpg") for i in range(4)] == splits


def test_metadata_split_of_a_folder_is_that_of_an_empty_value(tmp_path: Path) -> None:
    lines = [json.dumps({"file_name": f"{split}/0.jpg", "label": split, "split": None}) for split in ("train", "val")]
    files = {"train/0.jpg": picture(0), "val/0.jpg": picture(1), "metadata.jsonl": "\n".join(lines).encode()}
    found = by_source(read_all(open_set(write_files(tmp_path, files))), "split")
    assert found == {"train/0.jpg": "train", "val/0.jpg": "val"}


@pytest.mark.parametrize(
    ("labels", "keys"),
    [
        ([1, -1, None, ""], ["cat", "", "", ""]),
        (["1", "-1", "0", " "], ["cat", "", "dog", ""]),
        ([True, False, 1.0, -1.0], ["cat", "dog", "cat", ""]),
        ([[1], ["0"], [None], float("nan")], ["cat", "dog", "", ""]),
        (["²", "1", "0", "0"], ["²", "1", "0", "0"]),
        ([1, 7, 0, 0.5], ["1", "7", "0", "0.5"]),
        ([1, 7, 0, 0], ["cat", "#7", "dog", "dog"]),
        (["\ud800", "cat", "cat", "cat"], ["\\ud800", "cat", "cat", "cat"]),
    ],
)
def test_metadata_labels_are_names_numbers_or_missing(tmp_path: Path, labels: list[Any], keys: list[str]) -> None:
    lines = [json.dumps({"file_name": f"{i}.jpg", "label": label}) for i, label in enumerate(labels)]
    files = {f"{i}.jpg": picture(i) for i in range(4)} | {"metadata.jsonl": "\n".join(lines).encode()}
    (tmp_path / "list.txt").write_text("dog\ncat\n")
    source = open_set(write_files(tmp_path / "set", files), class_list=str(tmp_path / "list.txt"))
    assert by_source(read_all(source), "class_key") == {f"{i}.jpg": key for i, key in enumerate(keys)}


@pytest.mark.parametrize("label", [[], [1, 2], [[1]], [{}], {"name": "cat"}])
def test_metadata_labels_that_are_no_names_are_refused(tmp_path: Path, label: Any) -> None:
    files = {"0.jpg": picture(0), "metadata.jsonl": json.dumps({"file_name": "0.jpg", "label": label}).encode()}
    with pytest.raises(ConfigError, match=r"class_key: metadata\.jsonl: row 1: label is not a name or a number; give"):
        open_set(write_files(tmp_path, files))


def test_metadata_with_a_label_for_each_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.sources.reader._MAX_CLASSES", 5)
    lines = ["file_name,label", *(f"{i}.jpg,photo {i}" for i in range(6))]
    with pytest.raises(ConfigError, match="the labels of the image set have more than 5 values"):
        open_set(write_files(tmp_path, {"metadata.csv": "\n".join(lines).encode()}))


def test_metadata_captions_with_unusual_line_ends_are_one_row(tmp_path: Path) -> None:
    content = "file_name,label,text\n0.jpg,cat,one\u2028two\x0bthree\x85four\n".encode()
    root = write_files(tmp_path, {"0.jpg": picture(0), "metadata.csv": content})
    assert by_source(read_all(open_set(root)), "class_key") == {"0.jpg": "cat"}


def test_listed_parts_cover_all_rows_once(tmp_path: Path) -> None:
    lines = ["file_name,label", *(f"{i:05d}.jpg,{i % 2}x" for i in range(1000))]
    source = open_set(write_files(tmp_path, {"metadata.csv": "\n".join(lines).encode()}))
    parts = source.parts()
    assert [(part.start, part.end) for part in parts] == [(0, 256), (256, 512), (512, 768), (768, 1000)]
    assert read_all(source)["source"].to_pylist() == [f"{i:05d}.jpg" for i in range(1000)]


CUB = {
    "images/001.Black_footed_Albatross/0.jpg": picture(0),
    "images/002.Laysan_Albatross/0.jpg": picture(1),
    "images/002.Laysan_Albatross/1.jpg": picture(2),
    "images.txt": b"1 001.Black_footed_Albatross/0.jpg\n2 002.Laysan_Albatross/0.jpg\n3 002.Laysan_Albatross/1.jpg\n",
    "train_test_split.txt": b"1 1\n2 1\n3 0\n",
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_cub_has_the_splits_of_its_lists_and_readable_names(tmp_path: Path, mark: bytes) -> None:
    lists = {name: mark + content for name, content in CUB.items() if name.endswith(".txt")}
    source = open_set(write_files(tmp_path, CUB | lists))
    assert source.description == "the lists of CUB with train and val, 2 classes"
    assert source.classes.names == ("Black footed Albatross", "Laysan Albatross")
    assert by_source(read_all(source), "split") == {
        "images/001.Black_footed_Albatross/0.jpg": "train",
        "images/002.Laysan_Albatross/0.jpg": "train",
        "images/002.Laysan_Albatross/1.jpg": "val",
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_test_split.txt": b"1 1\n2 1\n"}, r"train_test_split\.txt has no line of image 3"),
        ({"images.txt": b"1\n"}, r"images\.txt: line 1 is not a number and a value"),
        ({"images.txt": b"1 ../0.jpg\n"}, r"\.\./0\.jpg leaves the image set"),
    ],
)
def test_cub_with_broken_lists_is_refused(tmp_path: Path, changed: dict[str, bytes], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_set(write_files(tmp_path, CUB | changed))
