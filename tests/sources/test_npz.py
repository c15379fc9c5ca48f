"""Tests of the layout of MedMNIST's archives of arrays."""

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.image_sets import by_source, open_set, picture, read_all, write_files
from vlcp_ray.images import decode
from vlcp_ray.settings import ConfigError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 4, 6, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 4, 6), dtype=np.uint8)
TRAIN, VAL = np.array([0, 1, 2] * 3, np.uint8)[:, None], np.array([0, 1, 2, 0, 9])


def write(root: Path, **changed: Any) -> Path:
    arrays = {"train_images": COLOUR, "train_labels": TRAIN, "test_images": GREY, "test_labels": VAL} | changed
    root.mkdir(exist_ok=True)
    np.savez_compressed(root / "mnist.npz", **{name: array for name, array in arrays.items() if array is not None})
    (root.parent / "names.txt").write_text("cat\ndog\ncow\n")
    return root / "mnist.npz"


def names(root: Path) -> str:
    return str(root.parent / "names.txt")


def test_npz_has_the_pixels_of_its_arrays(tmp_path: Path) -> None:
    file = write(tmp_path / "set")
    for source in (file, file.parent):
        opened = open_set(source, class_list=names(tmp_path / "set"))
        assert opened.description == "arrays of 6 x 4 pixels with train and val, 3 classes, val from test"
        table = read_all(opened)
        pixels = {name: np.asarray(decode(data)) for name, data in by_source(table, "image").items()}
        for number, image in enumerate(COLOUR):
            np.testing.assert_array_equal(pixels[f"mnist.npz:train#{number}"], image)
        for number, image in enumerate(GREY):
            np.testing.assert_array_equal(pixels[f"mnist.npz:val#{number}"][..., 0], image)
        keys = by_source(table, "class_key")
        assert [keys[f"mnist.npz:train#{number}"] for number in range(4)] == ["cat", "dog", "cow", "cat"]
        assert keys["mnist.npz:val#4"] == "#9"  # outside the list: ingest rejects it
        assert table["image_id"].to_pylist()[0] == "train/cat/0000000"


def test_npz_reads_wanted_classes_and_what_is_not_done(tmp_path: Path) -> None:
    source = open_set(write(tmp_path / "set"), class_list=names(tmp_path / "set"), classes=["dog"])
    table = read_all(source, ["mnist.npz:train#4"])
    assert table["source"].to_pylist() == [f"mnist.npz:{row}" for row in ("train#1", "train#7", "val#1", "val#4")]
    listed = [image for part in source.parts() for image in source.images(part, ids=True)]
    whole = read_all(source)
    assert sorted((one.source, one.image_id) for one in listed) == sorted(
        zip(whole["source"].to_pylist(), whole["image_id"].to_pylist(), strict=True)
    )


def test_npz_in_parts_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_set(write(tmp_path / "set", val_images=GREY, val_labels=VAL), class_list=names(tmp_path / "set"))
    assert not source.description.endswith("val from test")
    whole = read_all(source)
    monkeypatch.setattr("vlcp_ray.sources.npz._ROWS", 4)
    assert [(part.start, part.end) for part in source.parts()] == [(0, 4), (4, 8), (8, 9), (0, 4), (4, 5)]
    assert read_all(source).equals(whole)


def test_npz_that_is_cut_short_rejects_the_rest(tmp_path: Path) -> None:
    file = write(tmp_path / "set", train_images=RNG.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8))
    source = open_set(file, class_list=names(tmp_path / "set"))
    content = bytearray(file.read_bytes())
    content[40_000:60_000] = bytes(20_000)
    file.write_bytes(content)
    table = read_all(source)
    reasons = by_source(table, "reason")
    assert len(table) == 14
    assert reasons["mnist.npz:train#0"] == ""
    assert reasons["mnist.npz:train#8"] == "unreadable"
    assert reasons["mnist.npz:val#4"] == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": None}, "has no train_images; it has "),
        ({"train_images": COLOUR.astype(np.float32)}, "train_images of mnist.npz is no array of bytes"),
        ({"train_images": np.asfortranarray(COLOUR)}, "train_images of mnist.npz is no array of bytes"),
        ({"train_images": np.array([{}] * 9)}, "train_images of mnist.npz is no array of bytes"),
        ({"train_labels": np.ones((9, 14), np.uint8)}, "train_labels of mnist.npz is no array of one number"),
        ({"train_labels": np.array(["x"] * 9)}, "train_labels of mnist.npz is no array of one number"),
        ({"train_labels": np.array([{}] * 9)}, "train_labels of mnist.npz is no array of one number"),
        ({"train_labels": None}, "train_labels of mnist.npz is no array of one number"),
        ({"train_labels": TRAIN[:5]}, "has 9 images and 5 labels of train"),
    ],
)
def test_npz_of_another_form_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "set", **changed)
    with pytest.raises(ConfigError, match=message):
        open_set(file, class_list=names(tmp_path / "set"))


def test_npz_without_names_or_of_several_archives_names_the_fix(tmp_path: Path) -> None:
    file = write(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"label numbers \(0 to 9\) and no names; give a file"):
        open_set(file)
    (file.parent / "other.npz").write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match=r"has the archives mnist\.npz, other\.npz; give one of them"):
        open_set(file.parent)
    (file.parent / "other.npz").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"other\.npz cannot be read"):
        open_set(file.parent / "other.npz")


def test_npz_of_too_many_images_or_labels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.sources.npz._MAX_IMAGES", 9)
    file = write(tmp_path / "set")
    assert len(read_all(open_set(file, class_list=names(tmp_path / "set")))) == 14
    for changed in ({"train_images": np.zeros((10, 4, 6), np.uint8)}, {"train_labels": np.zeros(10, np.uint8)}):
        file = write(tmp_path / "set", **changed)
        with pytest.raises(ConfigError, match=r"mnist\.npz has 10 images or labels of train, the limit is 9; write"):
            open_set(file, class_list=names(tmp_path / "set"))


def test_npz_labels_are_kept_as_bytes(tmp_path: Path) -> None:
    count = 1_000_000
    images, labels = np.zeros((count, 1, 1), np.uint8), np.arange(count, dtype=np.int32) % 3
    file = write(tmp_path / "set", train_images=images, train_labels=labels)
    tracemalloc.start()
    source = open_set(file, class_list=names(tmp_path / "set"))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 6 * count
    assert peak < 16 * count
    rows = list(source.images(source.parts()[1]))
    assert [row.class_key for row in rows[:3]] == [("cat", "dog", "cow")[label] for label in labels[5_000:5_003]]


@pytest.mark.parametrize("header", [b" " * 2**25, b"{'descr': " + b"(" * 5_000, b"{'descr': '", b"\x00\n"])
def test_npz_header_that_is_too_long_or_no_python_is_refused(tmp_path: Path, header: bytes) -> None:
    file = write(tmp_path / "set", train_images=None)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        content = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
        archive.writestr("train_images.npy", content)
    del content
    tracemalloc.start()
    with pytest.raises(ConfigError, match=r"train_images of mnist\.npz is no array of bytes"):
        open_set(file, class_list=names(tmp_path / "set"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_npz_compressed_unlike_numpy_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "set", train_images=None)
    np.save(tmp_path / "train_images.npy", COLOUR)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_LZMA) as archive:
        archive.write(tmp_path / "train_images.npy", "train_images.npy")
    with pytest.raises(ConfigError, match=r"train_images of mnist\.npz is no array of bytes"):
        open_set(file, class_list=names(tmp_path / "set"))


def test_npz_beside_folders_of_images_is_no_image_set(tmp_path: Path) -> None:
    root = tmp_path / "set"
    files = {f"{split}/{name}/1.png": picture(1, "PNG") for split in ("train", "val") for name in ("cat", "dog")}
    write_files(root, files)
    np.savez(root / "fid_stats.npz", mu=np.zeros(3))
    assert open_set(root).layout == "folder"
    (root / "fid_stats.npz").write_bytes(b"x")
    assert open_set(root).layout == "folder"
    write(root)
    assert open_set(root).layout == "folder"


def test_npz_of_a_folder_without_other_images_is_found(tmp_path: Path) -> None:
    file = write(tmp_path / "set")
    (file.parent / "README.md").write_text("notes")
    (file.parent / "notes").mkdir()
    assert open_set(file.parent, class_list=names(tmp_path / "set")).layout == "npz"
    file.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"mnist\.npz cannot be read"):
        open_set(file.parent)
    np.savez(file, mu=np.zeros(3))
    (file.parent / "notes").rmdir()
    with pytest.raises(ConfigError, match="is in none of the layouts"):
        open_set(file.parent)
