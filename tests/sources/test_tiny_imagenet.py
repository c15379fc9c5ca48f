"""Tests of the layout of Tiny-ImageNet."""

import tarfile
from collections import Counter
from pathlib import Path

import pytest

from tests.image_sets import SHARED, by_source, open_set, picture, read_all, write_files


def test_tiny_imagenet_val_labels_are_from_annotations(tmp_path: Path) -> None:
    files = {
        f"train/{wnid}/images/{wnid}_{i}.JPEG": picture(i) for wnid in ("n01443537", "n01629819") for i in range(3)
    }
    files |= {f"val/images/val_{i}.JPEG": picture(10 + i) for i in range(4)}
    lines = [
        "val_0.JPEG\tn01443537\t0\t0\t9\t9",
        "val_1.JPEG\tn01629819\t0\t0\t9\t9",
        "val_2.JPEG\tn09999999\t0\t0\t9\t9",
    ]
    files["val/val_annotations.txt"] = "\n".join(lines).encode()
    source = open_set(write_files(tmp_path, files), classes=["n01629819"])
    assert source.description == "the tree of Tiny-ImageNet, 1 of its 2 classes"
    keys = by_source(read_all(source), "class_key")
    assert keys == {f"train/n01629819/images/n01629819_{i}.JPEG": "n01629819" for i in range(3)} | {
        "val/images/val_1.JPEG": "n01629819",
        "val/images/val_2.JPEG": "n09999999",  # not of this tree: ingest rejects it
        "val/images/val_3.JPEG": "",  # without annotation: ingest rejects it
    }


def test_tiny_imagenet_counts_val_images_that_are_not_there(tmp_path: Path) -> None:
    files = {f"train/{wnid}/images/1.JPEG": picture(1) for wnid in ("n01443537", "n01629819")}
    files |= {"val/images/val_0.JPEG": picture(2)}
    lines = ["val_0.JPEG\tn01443537", "val_1.JPEG\tn01629819", "val_2.JPEG\tn01443537", "val_3.JPEG\tn09999999"]
    files["val/val_annotations.txt"] = "\n".join(lines).encode()
    root = write_files(tmp_path, files)
    for classes, count in (((), 2), (("n01629819",), 1)):
        source, skipped = open_set(root, classes=classes), Counter[str]()
        assert [len(list(source.images(part, skipped))) for part in source.parts() if part.split == "val"]
        assert skipped == {"images that val_annotations.txt names and val/images lacks": count}


def test_tiny_imagenet_with_class_folders_in_val_is_layout_folder(tmp_path: Path) -> None:
    files = {"train/n01443537/images/1.JPEG": picture(1), "val/n01443537/2.JPEG": picture(2)}
    files["val/val_annotations.txt"] = b"2.JPEG\tn01443537"
    table = read_all(open_set(write_files(tmp_path, files)))
    assert sorted(table["split"].to_pylist()) == ["train", "val"]


def test_tiny_imagenet_of_real_archive_has_exact_counts(tmp_path: Path) -> None:
    archive = SHARED / "tiny-imagenet-20.tar"
    if not archive.exists():
        pytest.skip(f"{archive} is not there")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    source = open_set(tmp_path / "tiny-imagenet-20")
    assert source.description == "the tree of Tiny-ImageNet, 20 classes"
    table = read_all(source)
    counts = Counter(zip(table["split"].to_pylist(), table["class_key"].to_pylist(), strict=True))
    assert sorted(counts.values()) == [50] * 20 + [500] * 20
    assert set(table["reason"].to_pylist()) == {""}
