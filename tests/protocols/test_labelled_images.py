"""Tests of labelled images: preparing, checking, copying and sharing them."""

import errno
import io
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.labelled_digits import NAMES, digits
from vlcp_ray.images import encode_png
from vlcp_ray.protocols import labelled_images
from vlcp_ray.protocols.labelled_images import (
    LabelledImages,
    SharedSplit,
    check_split,
    delete_shared,
    load_split,
    prepare,
    share_split,
    to_device,
)
from vlcp_ray.schemas import IMAGES, SYNTHETIC, conform
from vlcp_ray.store.artifact import Artifact, Step, Store

SOME = digits(0, 20)


def test_prepare_cuts_the_middle_and_keeps_the_rows_in_order() -> None:
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = (200, 100, 50)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, format="BMP")
    plain = encode_png(np.full((8, 8, 3), 7, np.uint8))
    table = pa.table({"image": [buffer.getvalue(), plain], "label": pa.array([3, 1], pa.int32())})
    prepared = prepare(pa.concat_tables([table, table]), 16)
    assert prepared.pixels.shape == (4, 3, 16, 16)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.labels.dtype == np.int64
    assert prepared.labels.tolist() == [3, 1, 3, 1]
    np.testing.assert_array_equal(prepared.pixels[0, :, 8, 8], [200, 100, 50])
    assert (prepared.pixels[0] == prepared.pixels[0, :, :1, :1]).all()
    assert (prepared.pixels[1] == 7).all()


def test_prepare_resizes_before_it_cuts() -> None:
    """A white frame of an eighth per side is cut off if the short side is resized to 73 pixels or more."""
    framed = np.full((64, 64, 3), 255, np.uint8)
    framed[8:56, 8:56] = 0
    table = pa.table({"image": [encode_png(framed)], "label": [0]})
    assert prepare(table, 64).pixels.max() == 255
    assert prepare(table, 64, 96).pixels.max() == 0
    np.testing.assert_array_equal(prepare(table, 64, 64).pixels[0, 0], framed[:, :, 0])


@pytest.mark.parametrize(
    ("split", "names", "message"),
    [
        (digits(0, 0), NAMES, "evaluate: the train set has no images"),
        (SOME, NAMES[:9], r"the train set has labels \[9\], but 9 class names"),
        (LabelledImages(SOME.pixels[:, :, 1:], SOME.labels), NAMES, r"of \(3, 15, 16\), not \(3, 16, 16\)"),
    ],
)
def test_check_split_of_an_unusable_set_is_refused(split: LabelledImages, names: tuple[str, ...], message: str) -> None:
    check_split(SOME, "evaluate: the train set", 16, NAMES)
    with pytest.raises(ValueError, match=message):
        check_split(split, "evaluate: the train set", 16, names)


def test_to_device_copies_read_only_arrays() -> None:
    split = digits(0, 20)
    split.pixels.flags.writeable = split.labels.flags.writeable = False
    pixels, labels = to_device(split, "cpu")
    pixels.zero_()
    labels.zero_()
    np.testing.assert_array_equal(split.pixels, SOME.pixels)
    np.testing.assert_array_equal(split.labels, SOME.labels)


@pytest.fixture
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    """IMAGES or SYNTHETIC of five images in two files."""
    table, artifact = getattr(request, "param", "images"), Store.at(str(tmp_path)).artifact(Step("ingest", 1, {}))
    rows = [
        {"image_id": f"i{number}", "label": number, "class_name": "x", "split": split, "source": "", "text": ""}
        | {"image": encode_png(np.full((12, 12, 3), 10 * number, np.uint8)), "prototype_id": "", "seed": 0}
        for number, split in ((4, "train"), (1, "val"), (0, "train"), (3, "val"), (2, "train"))
    ]
    for part in (slice(0, 3), slice(3, 5)):
        written = conform(pa.Table.from_pylist(rows[part]), IMAGES if table == "images" else SYNTHETIC)
        artifact.write_table(f"{table}/{part.start}.parquet", written)
    return artifact


@pytest.mark.parametrize("artifact", ["images", "synthetic"], indirect=True)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("is_file", [False, True])
def test_load_split_reads_one_split_by_image_id(
    artifact: Artifact, threads: int, is_file: bool, tmp_path: Path
) -> None:
    train, val = (
        load_split(artifact, split, 8, 10, threads, tmp_path / split if is_file else None) for split in ("train", "val")
    )
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 2, 4], [1, 3])
    assert train.pixels.shape == (3, 3, 8, 8)
    assert train.pixels[:, 0, 4, 4].tolist() == [0, 20, 40]
    assert val.pixels[:, 2, 0, 7].tolist() == [10, 30]
    assert isinstance(train.pixels, np.memmap) == is_file
    sizes = {level: len(encode_png(np.full((12, 12, 3), 10 * level, np.uint8))) for level in range(5)}
    assert (train.file_bytes, val.file_bytes) == (sizes[0] + sizes[2] + sizes[4], sizes[1] + sizes[3])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of shared files, in a temporary folder of the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp" / f"vlcp-ray-{os.getuid()}"


def shared(artifact: Artifact, split: str = "val", resize: int = 10, key: str = "a") -> SharedSplit:
    return SharedSplit(artifact, key, split, 8, resize)


def test_share_split_decodes_once_and_maps_the_same_file(
    artifact: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = share_split(shared(artifact))
    others = share_split(shared(artifact, resize=12)), share_split(shared(artifact, key="b"))
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(labelled_images, "load_split", None)
    again = share_split(shared(artifact), threads=2)
    assert isinstance(first.pixels, np.memmap)
    assert len({split.pixels.filename for split in (first, again, *others)}) == 3  # type: ignore[attr-defined]
    monkeypatch.undo()
    loaded = load_split(artifact, "val", 8, 10)
    for split in (first, again):
        np.testing.assert_array_equal(split.pixels, loaded.pixels)
        np.testing.assert_array_equal(split.labels, loaded.labels)


def test_share_split_asked_for_at_once_decodes_once(
    artifact: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()

    def load(*arguments: Any) -> LabelledImages:
        calls.append(arguments[1])
        time.sleep(0.2)
        return load_split(*arguments)

    monkeypatch.setattr(labelled_images, "load_split", load)
    with ThreadPoolExecutor(4) as threads:
        splits = list(threads.map(lambda _: share_split(shared(artifact)), range(8)))
    assert calls == ["val"]
    assert all(split.labels.tolist() == [1, 3] for split in splits)
    assert {file.name for file in folder.iterdir()} == {f"a-val-8-10.{end}" for end in ("pixels", "labels", "lock")}


def test_delete_shared_deletes_only_its_own_splits(artifact: Artifact, folder: Path) -> None:
    mine, other = share_split(shared(artifact)), share_split(shared(artifact, key="b"))
    delete_shared([shared(artifact), shared(artifact, "train")])
    assert {file.name for file in folder.iterdir() if file.suffix != ".lock"} == {
        "b-val-8-10.pixels",
        "b-val-8-10.labels",
    }
    for split in (mine, other):
        assert split.pixels[0, 0, 0, 0] == 10  # mapped as long as a process needs it


def test_share_split_deletes_what_was_not_asked_for_in_a_day(artifact: Artifact, folder: Path) -> None:
    share_split(shared(artifact))
    for name in ("old.pixels", "old.labels", "old.unfinished"):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - 25 * 3600,) * 2)
    for name in ("a-val-8-10.pixels", "a-val-8-10.labels"):
        os.utime(folder / name, (time.time() - 25 * 3600,) * 2)
    share_split(shared(artifact))  # asked for again
    share_split(shared(artifact, "train"))
    assert {file.name.partition("-8")[0] for file in folder.iterdir()} == {"a-val", "a-train"}


def test_share_split_refuses_a_folder_that_others_can_change(artifact: Artifact, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="can be changed by others; delete it"):
        share_split(shared(artifact))
    folder.rmdir()
    folder.symlink_to(folder.parent)
    with pytest.raises(ValueError, match="can be changed by others; delete it"):
        share_split(shared(artifact))


def test_share_split_on_a_full_disk_names_the_fix_and_leaves_nothing(
    artifact: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fill)
    with pytest.raises(ValueError, match=r"evaluate: the disk of .* is full; .* TMPDIR"):
        share_split(shared(artifact))
    assert {file.suffix for file in folder.iterdir()} == {".lock"}


@pytest.mark.parametrize("small", [0, 2**26])
def test_load_split_of_large_and_small_sets_is_the_same(
    artifact: Artifact, small: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = load_split(artifact, "train", 8, 10)
    monkeypatch.setattr(labelled_images, "_SMALL", small)
    monkeypatch.setattr(labelled_images, "_ROWS", 2)
    for threads, file in ((1, None), (3, tmp_path / "file")):
        found = load_split(artifact, "train", 8, 10, threads, file)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert found.labels.tolist() == expected.labels.tolist() == [0, 2, 4]
    assert load_split(artifact, "test", 8, 10).pixels.shape == (0, 3, 8, 8)
