"""Tests of the layout of class folders."""

from collections import Counter
from pathlib import Path

import pytest

from tests.image_sets import by_source, open_set, picture, read_all, write_files
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import reader

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


def test_folder_split_is_a_whole_name(tmp_path: Path) -> None:
    names = ("bus", "train station", "test tube", "valid ticket")
    files = {f"{name}/{time}/{i}.jpg": picture(i) for name in names for time in ("day", "night") for i in range(2)}
    table = read_all(open_set(write_files(tmp_path, files)))
    assert by_source(table, "class_key") == {name: name.split("/")[0] for name in files}
    assert set(table["split"].to_pylist()) == {"train"}


def test_folder_two_folders_of_a_split_have_distinct_ids(tmp_path: Path) -> None:
    files = {f"{split}/{name}/0.jpg": picture(1) for split in ("train.X1", "train.X2", "val.X") for name in "ab"}
    table = read_all(open_set(write_files(tmp_path, files)))
    assert by_source(table, "image_id") == {
        "train.X1/a/0.jpg": "train/train.X1/a/0.jpg",
        "train.X1/b/0.jpg": "train/train.X1/b/0.jpg",
        "train.X2/a/0.jpg": "train/train.X2/a/0.jpg",
        "train.X2/b/0.jpg": "train/train.X2/b/0.jpg",
        "val.X/a/0.jpg": "val/a/0.jpg",
        "val.X/b/0.jpg": "val/b/0.jpg",
    }


def test_folder_flat_val_has_the_classes_of_its_list(tmp_path: Path) -> None:
    wnids = ("n01440764", "n02102040")
    files = {f"Data/train/{wnid}/{wnid}_1.JPEG": picture(1) for wnid in wnids}
    files |= {f"Data/val/v_{i}.JPEG": picture(i) for i in range(4)}
    lines = ["ImageId,PredictionString", "v_0,n01440764 1 1 2 2", "v_1,n02102040 1 1 2 2", "v_2,n09999999 1"]
    root = write_files(tmp_path, files | {"LOC_val_solution.csv": "\n".join(lines).encode()}) / "Data"
    source = open_set(root, classes=["n02102040"])
    assert source.description.endswith("train and val, 1 of its 2 classes, those of val from LOC_val_solution.csv")
    assert source.splits == {"train", "val"}
    assert by_source(read_all(source), "class_key") == {
        "train/n02102040/n02102040_1.JPEG": "n02102040",
        "val/v_1.JPEG": "n02102040",
        "val/v_3.JPEG": "",  # not in the list: ingest rejects it
    }
    assert read_all(source, ["val/v_1.JPEG"]).num_rows == 2
    assert open_set(root, val_fraction=0.5).splits == {"train"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["images/1.jpg", "cat/1.jpg"], "the folder images, which would be a class named 'images'; give the folder"),
        (["train/cat/1.jpg", "train/data/2.jpg"], "the folder train/data, which would be a class named 'data'"),
        (["img_train/a/1.jpg", "img_val/a/1.jpg"], "the folder img_train; if it is a split, rename it to train, else"),
        (["set-valid/a/1.jpg", "x/a/1.jpg"], "the folder set-valid; if it is a split, rename it to val, else"),
        (["train/a/1.jpg", "b/1.jpg"], "has train and beside it folders with images: b; move them into train or val"),
        (["x/a/1.jpg", "x/b/1.jpg", "y/c/1.jpg"], "the folders of .* hold only folders: x has a, b; move the class"),
        (["train/x/a/1.jpg", "train/x/b/1.jpg", "train/y/c/1.jpg"], "hold only folders: x has a, b; move the class"),
        (["val/a/1.jpg", "other/a/1.jpg"], "the folder val, which would be a class named 'val'"),
        (["val/a/1.jpg", "test/a/1.jpg"], "has no class folders of train; an image folder is"),
        (["train/1.jpg", "val/1.jpg"], "has no class folders of train; move each image into one"),
    ],
)
def test_folder_of_folders_that_are_no_classes_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    root = write_files(tmp_path, dict.fromkeys(names, picture(1)))
    with pytest.raises(ConfigError, match=message):
        open_set(root)


def test_folder_is_read_as_told_where_the_layout_is_named(tmp_path: Path) -> None:
    names = ["train/images/a/1.jpg", "train/cat/b/1.jpg", "train/cat/c/1.jpg", "extra/1.jpg"]
    source = open_set(write_files(tmp_path, dict.fromkeys(names, picture(1))), layout="folder")
    assert source.classes.keys == ("cat", "images")
    assert read_all(source).num_rows == 3


def test_folder_named_images_without_images_is_no_class(tmp_path: Path) -> None:
    files = {f"{split}/{name}/1.jpg": picture(1) for split in ("train", "val") for name in ("cat", "dog")}
    root = write_files(tmp_path, files | {"val/val_annotations.txt": b"1.jpg\tcat"})
    (root / "val" / "images").mkdir()
    source = open_set(root)
    assert source.classes.keys == ("cat", "dog")
    assert by_source(read_all(source), "class_key").keys() == files.keys()


def test_folder_class_named_train_is_read_where_the_layout_is_named(tmp_path: Path) -> None:
    files = {f"{name}/{i}.jpg": picture(i) for name in ("bus", "car", "train") for i in range(2)}
    root = write_files(tmp_path, files)
    with pytest.raises(ConfigError, match=r"would be a class named 'train'; .* set ingest\.layout = \"folder\""):
        open_set(root)
    source = open_set(root, layout="folder")
    assert source.classes.keys == ("bus", "car", "train")
    assert by_source(read_all(source), "image") == files


def test_folder_of_kaggles_names_has_splits(tmp_path: Path) -> None:
    files = {f"{split}/{name}/1.jpg": picture(1) for split in ("training_set", "test_set") for name in ("cats", "dogs")}
    table = read_all(open_set(write_files(tmp_path, files)))
    assert sorted(table["split"].to_pylist()) == ["train", "train", "val", "val"]
    assert set(table["class_key"].to_pylist()) == {"cats", "dogs"}


def test_folder_with_an_empty_val_uses_test(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"train/cat/1.jpg": picture(1), "test/cat/2.jpg": picture(2)})
    (root / "val").mkdir()
    assert open_set(root).splits == {"train", "val"}
    assert len(read_all(open_set(root))) == 2


def test_folder_counts_val_images_of_classes_that_train_lacks(tmp_path: Path) -> None:
    files = {"train/n01440764/1.JPEG": picture(1), "val/v_0.JPEG": picture(2), "val/v_1.JPEG": picture(3)}
    files["LOC_val_solution.csv"] = b"ImageId,PredictionString\nv_0,n01440764 1\nv_1,n02102040 1\n"
    source, skipped = open_set(write_files(tmp_path, files)), Counter[str]()
    rows = [row for part in source.parts() for table in source.read(part, (), skipped) for row in table.to_pylist()]
    assert {row["source"] for row in rows} == {"train/n01440764/1.JPEG", "val/v_0.JPEG"}
    assert skipped == {"val images of classes that train lacks": 1}


def test_folder_lists_each_folder_once_while_it_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{split}/class {i}/1.jpg": b"" for split in ("train", "val") for i in range(9)}
    listed: list[str] = []
    list_all = reader.pafs.FileSelector

    def recorded(path: str, *arguments: object, **options: object) -> object:
        listed.append(path)
        return list_all(path, *arguments, **options)

    root = write_files(tmp_path, files)
    monkeypatch.setattr(reader.pafs, "FileSelector", recorded)
    open_set(root)
    assert len(listed) == len(set(listed))
    assert len(listed) <= 3 + 2 * 8


def test_folder_wanted_class_with_an_ambiguous_name_is_the_one_of_the_set(tmp_path: Path) -> None:
    files = {f"train/{name}/1.jpg": picture(1) for name in ("panda", "cat")}
    assert open_set(write_files(tmp_path, files), classes=["panda"]).classes.keys == ("panda",)


def test_open_source_notes_a_list_of_val_images_that_are_not_there(tmp_path: Path) -> None:
    train = {f"train/{wnid}/1.JPEG": picture(1) for wnid in ("n01443537", "n01629819")}
    lines = b"val_0.JPEG\tn01443537\nval_1.JPEG\tn01629819\n"
    root = write_files(tmp_path / "tiny", train | {"val/val_annotations.txt": lines})
    assert open_set(root).description.endswith("2 classes; val has no images; val_annotations.txt names 2")
    root = write_files(tmp_path / "kaggle" / "CLS-LOC", train)
    (tmp_path / "kaggle" / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nval_1,n01440764 1 2 3 4\n")
    assert open_set(root).description.endswith("2 classes; there is LOC_val_solution.csv but no val")
    assert "LOC_val" not in open_set(root, val_fraction=0.5).description
    (tmp_path / "tiny/val/val_annotations.txt").write_bytes(b"\xff\xfe")
    assert open_set(tmp_path / "tiny").description.endswith("there is val_annotations.txt, which cannot be read")


def test_open_source_whose_val_is_taken_from_train_has_the_classes_of_train(tmp_path: Path) -> None:
    root = write_files(tmp_path, FILES | {"val/cow/1.jpg": picture(9)})
    assert open_set(root).classes.keys == ("cat", "cow", "dog")
    assert open_set(root, val_fraction=0.5).classes.keys == ("cat", "dog")


def test_read_counts_images_that_the_list_of_val_names_and_val_lacks(tmp_path: Path) -> None:
    files = {f"train/{wnid}/1.JPEG": picture(1) for wnid in ("n01440764", "n02102040")} | {"val/val_1.JPEG": picture(2)}
    files["LOC_val_solution.csv"] = (
        b"ImageId,PredictionString\nval_1,n01440764 1\nval_2,n02102040 1\nval_3,n01443537 1\n"
    )
    source, skipped = open_set(write_files(tmp_path, files)), Counter[str]()
    (part,) = [part for part in source.parts() if part.split == "val"]
    assert [row["class_key"] for table in source.read(part, (), skipped) for row in table.to_pylist()] == ["n01440764"]
    assert skipped == {"images that LOC_val_solution.csv names and val lacks": 1}
