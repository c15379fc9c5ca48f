"""Tests of labelled images: preparing, checking and copying them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.labelled_digits import NAMES, digits
from vlcp_ray.images import encode_png
from vlcp_ray.protocols.labelled_images import LabelledImages, check_split, load_split, prepare, to_device
from vlcp_ray.schemas import IMAGES, SYNTHETIC, conform
from vlcp_ray.store.artifact import Step, Store

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


@pytest.mark.parametrize("table", ["images", "synthetic"])
def test_load_split_reads_one_split_by_image_id(table: str, tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(Step("ingest", 1, {}))
    rows = [
        {"image_id": f"i{number}", "label": number, "class_name": "x", "split": split, "source": "", "text": ""}
        | {"image": encode_png(np.full((12, 12, 3), 10 * number, np.uint8)), "prototype_id": "", "seed": 0}
        for number, split in ((4, "train"), (1, "val"), (0, "train"), (3, "val"), (2, "train"))
    ]
    for part in (slice(0, 3), slice(3, 5)):
        written = conform(pa.Table.from_pylist(rows[part]), IMAGES if table == "images" else SYNTHETIC)
        artifact.write_table(f"{table}/{part.start}.parquet", written)
    train, val = (load_split(artifact, split, 8, 10) for split in ("train", "val"))
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 2, 4], [1, 3])
    assert train.pixels.shape == (3, 3, 8, 8)
    assert train.pixels[:, 0, 4, 4].tolist() == [0, 20, 40]
