"""Tests of labelling: labels and class names, and bad rows that are rejected with a reason."""

import pyarrow as pa
import pytest

from tests.image_sets import open_set, picture, read_all
from vlcp_ray.schemas import IMAGES, conform
from vlcp_ray.sources.reader import RAW, Row
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.ingest.label import LabelRows, split_of_id

KEYS, NAMES = ("n1", "cat", "dog"), ("a tench", "cat", "dog")


def rows(*images: bytes, key: str = "cat") -> list[Row]:
    return [Row(f"train/{key}/{i}", key, "train", f"file {i}", image) for i, image in enumerate(images)]


def label(
    *unlabelled: Row, keys: tuple[str, ...] = KEYS, names: tuple[str, ...] = NAMES, **settings: object
) -> pa.Table:
    return LabelRows(Ingest(**settings), keys, names)(
        pa.Table.from_pylist([r._asdict() for r in unlabelled], schema=RAW)
    )


def test_label_rows_in_other_class_order_keeps_names() -> None:
    unlabelled = [row for key in KEYS for row in rows(picture(0), key=key)]
    labelled = label(*unlabelled)
    assert labelled["label"].to_pylist() == [0, 1, 2]
    assert labelled["class_name"].to_pylist() == list(NAMES)
    other = label(*unlabelled, keys=KEYS[::-1], names=NAMES[::-1])
    assert other["label"].to_pylist() == [2, 1, 0]
    assert other["class_name"].to_pylist() == list(NAMES)
    conform(labelled, IMAGES)


BAD = {
    "empty": (b"", "the file has no bytes"),
    "undecodable": (b"this is text", "the bytes are not an image"),
    "too_large": (picture(0, size=(40, 40)), "1600 pixels|40 x 40 pixels, the limit is 1000"),
}


@pytest.mark.parametrize("reason", BAD)
def test_label_rows_bad_bytes_rejects_their_row_only(reason: str) -> None:
    content, detail = BAD[reason]
    labelled = label(*rows(picture(0), content, picture(1)), max_pixels=1000)
    assert labelled["reason"].to_pylist() == ["", reason, ""]
    assert any(part in labelled["detail"][1].as_py() for part in detail.split("|"))


def test_label_rows_truncated_file_is_undecodable_without_memory_address() -> None:
    whole = picture(0, size=(64, 64))
    labelled = label(*rows(whole[: len(whole) // 2], b"text"))
    assert labelled["reason"].to_pylist() == ["undecodable", "undecodable"]
    assert "0x" not in " ".join(labelled["detail"].to_pylist())


def test_label_rows_over_max_bytes_is_too_large() -> None:
    small, large = picture(0), picture(0, size=(64, 64))
    labelled = label(*rows(small, large), max_bytes=len(small))
    assert labelled["reason"].to_pylist() == ["", "too_large"]


def test_label_rows_without_a_class_are_rejected() -> None:
    labelled = label(*rows(picture(0)), *rows(picture(0), key=""), *rows(picture(0), key="#1000"))
    assert labelled["reason"].to_pylist() == ["", "no_label", "unknown_label"]
    assert labelled["label"].to_pylist() == [1, -1, -1]
    assert "'#1000' is not in the class list" in labelled["detail"][2].as_py()


def test_label_rows_keeps_reason_of_the_source() -> None:
    row = rows(b"")[0]._replace(reason="unreadable", detail="cut short")
    assert label(row).select(["reason", "detail"]).to_pylist() == [{"reason": "unreadable", "detail": "cut short"}]


def test_label_rows_val_fraction_depends_on_the_row_only() -> None:
    digits = open_set("digits")
    train = read_all(digits).filter(pa.compute.equal(read_all(digits)["split"], "train"))
    label_rows = LabelRows(Ingest(val_fraction=0.25), digits.classes.keys, digits.classes.names)
    whole = dict(zip(train["image_id"].to_pylist(), label_rows(train)["split"].to_pylist(), strict=True))
    part = label_rows(train.slice(100, 50))
    assert part["split"].to_pylist() == [whole[image_id] for image_id in part["image_id"].to_pylist()]
    assert sum(split == "val" for split in whole.values()) == pytest.approx(0.25 * len(train), rel=0.15)


def test_split_of_id_takes_about_the_share_of_images() -> None:
    count = sum(split_of_id(f"train/cat/{i}.jpg", 0.2) == "val" for i in range(2000))
    assert 330 < count < 470
