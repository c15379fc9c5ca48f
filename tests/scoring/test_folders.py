"""Tests of sets in the layouts of image sets: classes by name in any order, and files that cannot be used."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.image_sets import picture
from vlcp_ray.scoring.class_names import JobClasses
from vlcp_ray.scoring.folders import read
from vlcp_ray.scoring.given import GivenSet
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.ingest import Ingest

CLASSES = JobClasses(("n01440764", "n02102040", "zebra"), ("tench, Tinca tinca", "English springer", "zebra"))
SETTINGS = Ingest(max_bytes=10**6, max_pixels=10**4)


def write(folder: Path, classes: list[str], count: int = 2, split: str = "") -> Path:
    for number, name in enumerate(classes):
        target = folder / split / name
        target.mkdir(parents=True)
        for image in range(count):
            (target / f"{image}.png").write_bytes(picture(number * count + image))
    return folder


def read_folder(folder: Path, classes: JobClasses = CLASSES, class_list: str = "") -> GivenSet:
    return read(str(folder), str(folder), classes, class_list, SETTINGS)


def rows_of(given: GivenSet) -> list[dict[str, object]]:
    return pa.concat_tables(given.rows()).to_pylist()


@pytest.mark.parametrize(
    "names",
    [
        ["n01440764", "n02102040", "zebra"],
        ["zebra", "English_springer", "tench"],
        ["tench, Tinca tinca", "n02102040", "Zebra"],
    ],
)
@pytest.mark.parametrize("split", ["", "train"])
def test_classes_are_found_by_wnid_or_name(names: list[str], split: str, tmp_path: Path) -> None:
    given = read_folder(write(tmp_path, names, split=split))
    assert given.counts == (2, 2, 2)
    labels = {str(row["image_id"]).split("/")[-2]: row["label"] for row in rows_of(given)}
    assert labels == {name: CLASSES.match([name], "x")[0] for name in names}
    assert {row["split"] for row in rows_of(given)} == {"train"}


def test_val_images_and_hidden_files_are_left_out_and_other_files_said(tmp_path: Path) -> None:
    write(tmp_path, list(CLASSES.keys), split="train")
    write(tmp_path, list(CLASSES.keys), 5, split="val")
    first = tmp_path / "train" / "zebra"
    (first / "._0.png").write_bytes(b"Mac OS X")
    (first / ".hidden.png").write_bytes(picture(99))
    (first / "notes.txt").write_text("x")
    given = read_folder(tmp_path)
    assert given.counts == (2, 2, 2)
    assert given.notes == ("not read: 1 .txt file",)


def test_the_same_files_are_the_same_content_and_another_pixel_is_another(tmp_path: Path) -> None:
    one, two = (
        read_folder(write(tmp_path / "a", list(CLASSES.keys))),
        read_folder(write(tmp_path / "b", list(CLASSES.keys))),
    )
    assert one.content == two.content
    (tmp_path / "b" / "zebra" / "0.png").write_bytes(picture(50))
    assert read_folder(tmp_path / "b").content != one.content  # the folder is listed and read again


def test_numbered_folders_need_a_list_of_classes(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", ["00000", "00001", "00002"])
    with pytest.raises(ConfigError, match="its classes are numbers, and nothing says which class a number is"):
        read_folder(folder)
    (tmp_path / "classes.txt").write_text("zebra\ntench, Tinca tinca\nn02102040\n")
    given = read_folder(folder, class_list=str(tmp_path / "classes.txt"))
    labels = {str(row["image_id"]).split("/")[-2]: row["label"] for row in rows_of(given)}
    assert labels == {"00000": 2, "00001": 0, "00002": 1}
    given = read_folder(folder, class_list="job")
    labels = {str(row["image_id"]).split("/")[-2]: row["label"] for row in rows_of(given)}
    assert labels == {"00000": 0, "00001": 1, "00002": 2}


def test_equal_images_of_a_table_without_names_are_rows_of_their_own(tmp_path: Path) -> None:
    images = [picture(0), picture(0), picture(1), picture(2)]
    table = pa.table({"image": images, "label": ["zebra", "zebra", "n01440764", "n02102040"]})
    parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    given = read_folder(tmp_path)
    assert given.counts == (1, 1, 2)
    assert len({row["image_id"] for row in rows_of(given)}) == 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "zebra/0.png cannot be used: the file has no bytes"),
        (b"no image", "zebra/0.png cannot be used: the bytes are not an image"),
        (picture(0, size=(101, 101)), "zebra/0.png cannot be used: 101 x 101 pixels, the limit is 10000"),
        (bytes(10**6 + 1), "zebra/0.png cannot be read: 1000001 bytes, the limit is 1000000"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    folder = write(tmp_path, list(CLASSES.keys))
    (folder / "zebra" / "0.png").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_folder(folder)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_that_are_no_set_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "few", ["zebra", "tench"])
    with pytest.raises(ConfigError, match="no image of 'English springer'"):
        read_folder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is an empty folder") as error:
        read_folder(tmp_path / "empty")
    assert "ingest" not in str(error.value)
    folder = write(tmp_path / "hidden", list(CLASSES.keys), 0)
    for name in CLASSES.keys:
        (folder / name / ".0.png").write_bytes(picture(0))
    with pytest.raises(ConfigError, match=r"it has no training images$"):
        read_folder(folder)
    (folder / "zebra" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"it has no training images \(not read: 1 \.txt file\)$"):
        read_folder(folder)
    folder = write(tmp_path / "links", list(CLASSES.keys))
    (folder / "zebra" / "out.png").symlink_to(tmp_path / "few" / "zebra" / "0.png")
    os.link(folder / "zebra" / "0.png", folder / "zebra" / "hard.png")
    with pytest.raises(ConfigError, match=r"zebra/out\.png cannot be read: a link that leaves the image set"):
        read_folder(folder)
