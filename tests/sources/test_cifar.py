"""Tests of the layout of CIFAR's python archives: classes, ids and pixels of its files, and files of another form."""

import gzip
import io
import pickle
import subprocess
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile import Payload
from tests.image_sets import by_source, open_set, picture, read_all, write_files
from tests.sources.test_pickles import of_python_2
from vlcp_ray.images import decode
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.reader import Source

COUNT = 30  # images of a file, whose pixels have 92,160 bytes
NAMES = [b"airplane", b"cat", b"sea_lion_x"]
TEN = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def pixels(seed: int) -> np.ndarray:
    """Return the pixels of the images of a file, (n, 3, 32, 32)."""
    return np.random.default_rng(seed).integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8)


def batch(seed: int, key: str = "labels", **changed: Any) -> dict[str, Any]:
    content = {
        "batch_label": b"a batch",
        key: [number % 3 for number in range(COUNT)],
        "data": pixels(seed).reshape(COUNT, 3072),
        "filenames": [b"image_s_%06d.png" % (seed * COUNT + number) for number in range(COUNT)],
    }
    return {name: value for name, value in (content | changed).items() if value is not None}


def pickled(content: Mapping[str, Any], protocol: int = 2) -> bytes:
    return pickle.dumps({name.encode(): value for name, value in content.items()}, protocol)


def ten(protocol: int = 2) -> dict[str, bytes]:
    """Return the files of a small CIFAR-10."""
    files = {name: pickled(batch(seed), protocol) for seed, name in enumerate(TEN)}
    return files | {
        "batches.meta": pickled({"label_names": NAMES, "num_vis": 3072}, protocol),
        "readme.html": b"<html>",
    }


def hundred() -> dict[str, bytes]:
    """Return the files of a small CIFAR-100."""
    meta = {"fine_label_names": NAMES, "coarse_label_names": [b"all"]}
    files = {
        name: pickled(batch(seed, "fine_labels", coarse_labels=[0] * COUNT))
        for seed, name in enumerate(("train", "test"))
    }
    return files | {"meta": pickled(meta), "file.txt~": b""}


def check(source: Source, batches: Mapping[str, int]) -> None:
    """Compare every row with the arrays that were written."""
    table = read_all(source)
    images, keys, ids = (by_source(table, column) for column in ("image", "class_key", "image_id"))
    assert len(table) == COUNT * len(batches)
    assert set(table["reason"].to_pylist()) == {""}
    for name, seed in batches.items():
        split = "train" if "t_b" not in name and name != "test" else "val"
        for number, expected in enumerate(pixels(seed)):
            row = f"{name}#{number}"
            np.testing.assert_array_equal(np.asarray(decode(images[row])), expected.transpose(1, 2, 0))
            assert keys[row] == NAMES[number % 3].decode()
            assert ids[row] == f"{split}/{keys[row]}/image_s_{seed * COUNT + number:06d}.png"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar_10_has_the_pixels_names_and_classes_of_its_files(tmp_path: Path, protocol: int) -> None:
    root = write_files(tmp_path / "cifar-10-batches-py", ten(protocol))
    source = open_set(root)
    assert source.layout == "cifar"
    assert source.description == "the python archive of CIFAR with 5 train files and 1 val file, 3 classes"
    assert source.splits == {"train", "val"}
    assert source.classes.keys == ("airplane", "cat", "sea_lion_x")
    check(source, {name: seed for seed, name in enumerate(TEN)})


def test_cifar_10_as_python_2_has_written_it_has_the_same_rows(tmp_path: Path) -> None:
    files = ten()
    for seed, name in enumerate(TEN):
        content = batch(seed)
        files[name] = of_python_2(content["data"], labels=content["labels"], filenames=content["filenames"])
    check(open_set(write_files(tmp_path, files)), {name: seed for seed, name in enumerate(TEN)})


def test_cifar_100_has_its_fine_classes(tmp_path: Path) -> None:
    source = open_set(write_files(tmp_path / "cifar-100-python", hundred()))
    assert source.description == "the python archive of CIFAR with 1 train file and 1 val file, 3 classes"
    check(source, {"train": 0, "test": 1})


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py", "data/cifar-10-batches-py"])
def test_cifar_is_found_in_the_folders_above_it(tmp_path: Path, inner: str) -> None:
    write_files(tmp_path / "set" / inner, ten())
    if inner == "cifar-10-batches-py":  # as torchvision leaves it
        write_files(tmp_path / "set", {"cifar-10-python.tar.gz": b"", "cifar-10-python.tar": b"", "README.md": b""})
    assert len(read_all(open_set(tmp_path / "set"))) == len(TEN) * COUNT


def test_cifar_beside_another_or_images_is_not_guessed(tmp_path: Path) -> None:
    write_files(tmp_path / "cifar-10-batches-py", ten())
    write_files(tmp_path / "cifar-100-python", hundred())
    with pytest.raises(ConfigError, match=r"holds \S+/cifar-10-batches-py, \S+/cifar-100-python; give one of them"):
        open_set(tmp_path)
    root = write_files(tmp_path / "two", {"train/cat/1.jpg": picture(1), "val/cat/2.jpg": picture(2)})
    write_files(root / "cifar-10-batches-py", ten())
    assert open_set(root).layout == "folder"
    with pytest.raises(ConfigError, match=r"has no batches\.meta beside data_batch_1"):
        open_set(root / "train", layout="cifar")


def test_cifar_archive_is_refused_with_the_command_that_unpacks_it(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in ten().items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(content.getvalue()))
    with pytest.raises(ConfigError, match=r"cifar-10-python\.tar\.gz is an archive, which is not read as it") as error:
        open_set(tmp_path)
    subprocess.run(["sh", "-c", str(error.value).split("unpack it: ")[1].split(", and set")[0]], check=True)
    assert len(read_all(open_set(tmp_path / "unpacked"))) == len(TEN) * COUNT


def test_cifar_reads_wanted_classes_and_what_is_not_done(tmp_path: Path) -> None:
    source = open_set(write_files(tmp_path, ten()), classes=["cat"])
    done = [f"{name}#{number}" for name in TEN for number in range(1, COUNT, 3)][:-2]
    table = read_all(source, done)
    assert table["source"].to_pylist() == ["test_batch#25", "test_batch#28"]
    listed = [image for part in source.parts() for image in source.images(part, ids=True)]
    assert sorted((one.source, one.image_id) for one in listed) == sorted(
        by_source(read_all(source), "image_id").items()
    )


def test_cifar_class_list_names_its_classes(tmp_path: Path) -> None:
    (tmp_path / "names.tsv").write_bytes(b"\xef\xbb\xbfsea_lion_x\tsea lion\n")
    source = open_set(write_files(tmp_path / "set", ten()), class_list=str(tmp_path / "names.tsv"))
    assert source.classes.names == ("airplane", "cat", "sea lion")


def test_cifar_in_parts_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for protocol in (2, 4):  # text, and bytes
        source = open_set(write_files(tmp_path / str(protocol), ten(protocol)))
        monkeypatch.setattr("vlcp_ray.sources.cifar._ROWS", 5_000)
        whole = read_all(source)
        monkeypatch.setattr("vlcp_ray.sources.cifar._ROWS", 13)
        assert [(part.start, part.end) for part in source.parts()] == [(0, 13), (13, 26), (26, 30)] * len(TEN)
        assert read_all(source).equals(whole)


def test_cifar_labels_without_a_class_and_repeated_names_are_rows(tmp_path: Path) -> None:
    files = ten()
    names = [b"same.png"] * 2 + [b"\xff/../%d\n" % number for number in range(COUNT - 2)]
    files["data_batch_1"] = pickled(batch(0, labels=[1, 1, 3, -1] + [0] * (COUNT - 4), filenames=names))
    table = read_all(open_set(write_files(tmp_path, files)))
    keys, ids = by_source(table, "class_key"), by_source(table, "image_id")
    assert [keys[f"data_batch_1#{number}"] for number in range(5)] == ["cat", "cat", "#3", "#-1", "airplane"]
    assert [ids[f"data_batch_1#{number}"] for number in range(3)] == [
        "train/cat/data_batch_1/00000/same.png",
        "train/cat/data_batch_1/00001/same.png",
        "train/#3/\\xff/0\n",
    ]
    assert len(set(ids.values())) == len(table)


@pytest.mark.parametrize("names", [None, [], [1] * COUNT, [b"x" * 300] * COUNT, [b"one.png"]])
def test_cifar_without_file_names_has_ids_of_the_places(tmp_path: Path, names: list[Any] | None) -> None:
    files = ten() | {"data_batch_1": pickled(batch(0, filenames=names))}
    ids = by_source(read_all(open_set(write_files(tmp_path, files))), "image_id")
    assert ids["data_batch_1#29"] == "train/sea_lion_x/data_batch_1/00029"
    assert ids["data_batch_2#0"] == "train/airplane/image_s_000030.png"


def test_cifar_image_over_max_bytes_is_too_large(tmp_path: Path) -> None:
    table = read_all(open_set(write_files(tmp_path, ten()), max_bytes=100))
    assert set(table["reason"].to_pylist()) == {"too_large"}
    assert set(table["image"].to_pylist()) == {b""}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_1", b"", r"data_batch_1 of .* cannot be read \(it is cut short\); download it again"),
        ("test_batch", pickled(batch(2))[:50_000], r"test_batch of .* cannot be read \(it is cut short\)"),
        ("data_batch_1", pickled(batch(0, data=None)), "data_batch_1 of .* has no images of 32 x 32 pixels"),
        ("data_batch_1", pickled(batch(0, data=pixels(0))), "has no images of 32 x 32 pixels"),
        ("data_batch_1", pickled(batch(0, data=pixels(0)[:9].reshape(9, 3072))), "has no images of 32 x 32"),
        ("data_batch_1", pickled(batch(0, data=pixels(0).reshape(COUNT, 3072) / 1)), "an array of another type"),
        (
            "data_batch_1",
            pickled(batch(0, labels=[0] * 9)),
            "has no images of 32 x 32 pixels in data with as many numbers in labels, as",
        ),
        ("data_batch_1", pickled(batch(0, labels=["cat"] * COUNT)), "has no images"),
        ("data_batch_1", pickled(batch(0, labels=[True] * COUNT)), "has no images"),
        ("data_batch_1", pickled(batch(0, labels=None)), "has no images"),
        ("data_batch_1", pickle.dumps([1, 2]), "has no images"),
        ("batches.meta", pickle.dumps([1, 2]), "has no list label_names of different class names"),
        ("batches.meta", pickled({"label_names": [b"cat", b"cat"]}), "has no list label_names of different"),
        ("batches.meta", pickled({"label_names": [b"cat", b""]}), "has no list label_names of different"),
        ("batches.meta", pickled({"label_names": [b"cat", 3]}), "has no list label_names of different"),
    ],
)
def test_cifar_of_another_form_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_set(write_files(tmp_path, ten() | {name: content}))


@pytest.mark.parametrize(
    ("left", "missing"),
    [
        (["data_batch_1"], "data_batch_2, data_batch_3, data_batch_4, data_batch_5"),
        (["data_batch_3", "data_batch_5"], "data_batch_1, data_batch_2, data_batch_4"),
        (TEN[:4], "data_batch_5"),
    ],
)
def test_cifar_without_some_of_train_is_refused(tmp_path: Path, left: list[str], missing: str) -> None:
    root = write_files(
        tmp_path, {name: content for name, content in ten().items() if name not in TEN[:5] or name in left}
    )
    with pytest.raises(ConfigError, match=f" has no {missing}; CIFAR has 5 files of train; unpack the archive again"):
        open_set(root)


def test_cifar_without_test_has_no_val(tmp_path: Path) -> None:
    source = open_set(write_files(tmp_path, {name: content for name, content in ten().items() if name != "test_batch"}))
    assert source.splits == {"train"}
    assert len(read_all(source)) == 5 * COUNT


@pytest.mark.parametrize("name", ["batches.meta", "data_batch_2"])
def test_cifar_with_one_name_any_number_of_times_takes_bounded_memory(tmp_path: Path, name: str) -> None:
    names = [b"x" * 250] * 200_000
    root = write_files(tmp_path, ten() | {name: pickled(batch(1, label_names=names, filenames=names))})
    tracemalloc.start()
    if name == "batches.meta":
        with pytest.raises(ConfigError, match="has no list label_names of different class names"):
            open_set(root)
    else:
        open_set(root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("name", ["batches.meta", "data_batch_2"])
def test_cifar_with_code_in_a_file_is_refused_and_runs_nothing(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "EXECUTED"
    content = pickled({"data": Payload(marker, 1), "label_names": Payload(marker, NAMES)})
    with pytest.raises(ConfigError, match=rf"{name} of .* cannot be read \(it names '.*\.eval', which arrays of numpy"):
        open_set(write_files(tmp_path / "set", ten() | {name: content}))
    assert not marker.exists()


def test_cifar_file_that_is_cut_short_afterwards_is_rejected_rows(tmp_path: Path) -> None:
    root = write_files(tmp_path, ten(4))
    source = open_set(root)
    (root / "data_batch_1").write_bytes((root / "data_batch_1").read_bytes()[:50_000])
    (root / "test_batch").unlink()
    table = read_all(source)
    reasons = by_source(table, "reason")
    assert len(reasons) == len(TEN) * COUNT
    assert {name.partition("#")[0] for name, reason in reasons.items() if not reason} == set(TEN[1:-1])
    assert set(filter(None, reasons.values())) == {"unreadable"}
    assert "data_batch_1 is damaged (it is cut short" in by_source(table, "detail")["data_batch_1#0"]


def test_cifar_file_that_is_a_link_out_of_the_set_is_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path / "set", ten())
    (root / "data_batch_1").rename(tmp_path / "private")
    (root / "data_batch_1").symlink_to(tmp_path / "private")
    with pytest.raises(
        ConfigError, match=r"data_batch_1 of .* cannot be read \(it is a link that leaves the image set"
    ):
        open_set(root)
    assert len(read_all(open_set(root, follow_links=True))) == len(TEN) * COUNT
