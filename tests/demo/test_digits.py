"""Tests of the embedded digits: a fixed split, unique ids, and complete rows."""

import io
from collections import Counter

import numpy as np
from PIL import Image

from vlcp_ray.demo import digits

FIRST_VAL_IDS = ["digits-0000", "digits-0009", "digits-0011", "digits-0021", "digits-0023"]


def test_rows_have_unique_ids_and_exact_split_counts() -> None:
    rows = list(digits.rows())
    assert Counter(row["split"] for row in rows) == {"train": 1297, "val": 500}
    assert len({row["image_id"] for row in rows}) == 1797
    assert rows[0]["image_id"] == "digits-0000"
    assert rows[-1]["image_id"] == "digits-1796"


def test_split_is_stratified_by_label() -> None:
    totals = Counter(row["label"] for row in digits.rows())
    held_out = Counter(row["label"] for row in digits.rows("val"))
    for label, count in totals.items():
        assert abs(held_out[label] - 500 * count / 1797) < 1


def test_split_assigns_the_known_ids_to_val() -> None:
    first = [row["image_id"] for row in digits.rows("val")][:5]
    assert first == FIRST_VAL_IDS


def test_row_has_a_png_and_its_class_name() -> None:
    row = next(digits.rows())
    image = Image.open(io.BytesIO(row["image"]))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
    assert row["class_name"] == digits.CLASS_NAMES[row["label"]] == "digit zero"


def test_load_equals_rows() -> None:
    images, labels = digits.load("val")
    rows = list(digits.rows("val"))
    assert images.shape == (500, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [row["label"] for row in rows]
    assert np.array_equal(images[7], np.asarray(Image.open(io.BytesIO(rows[7]["image"]))))
