"""Tests of the layouts whose images are named by lists."""

from pathlib import Path

import pytest

from tests.image_sets import by_source, open_set, picture, read_all, write_files
from vlcp_ray.settings import ConfigError

FOUR = {f"train/{i}.jpg": picture(i) for i in range(4)}
CSV = b"file_name,label\n0.jpg,cat\n1.jpg,dog\n2.jpg,cat\n3.jpg,dog\n"


def test_metadata_names_the_classes_of_the_images_beside_it(tmp_path: Path) -> None:
    files = FOUR | {"train/metadata.csv": b"\xef\xbb\xbf" + CSV, "validation/0.jpg": picture(9)}
    files["validation/metadata.jsonl"] = b'{"file_name": "0.jpg", "label": "dog", "text": "a dog"}\n\n'
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


def test_cub_has_the_splits_of_its_lists_and_readable_names(tmp_path: Path) -> None:
    source = open_set(write_files(tmp_path, CUB))
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
