"""Whether every row is labelled by name and bad bytes cost a row and never a run."""

import pyarrow as pa
import pytest

from vlcp_ray import config
from vlcp_ray.sources import RAW, open_source
from vlcp_ray.stages.ingest import Ingest

NAMES = open_source("digits").class_names


def rows(n: int = 40) -> pa.Table:
    return open_source("digits").read("val").slice(0, n)


def test_labels_follow_names_and_not_positions() -> None:
    one = Ingest(config.Ingest(), NAMES)(rows())
    other = Ingest(config.Ingest(), NAMES[::-1])(rows())
    assert [NAMES[label] for label in one["label"].to_pylist()] == one["class_name"].to_pylist()
    assert [NAMES[::-1][label] for label in other["label"].to_pylist()] == one["class_name"].to_pylist()


def test_broken_bytes_are_rejected_and_nothing_else() -> None:
    table = rows().to_pylist()
    table[3]["image"] = table[3]["image"][:40]
    table[5]["image"] = b""
    table[7]["image"] = b"this is text"
    made = Ingest(config.Ingest(), NAMES)(pa.Table.from_pylist(table, schema=RAW))
    assert len(made) == len(table)
    assert {i: reason for i, reason in enumerate(made["reason"].to_pylist()) if reason} == dict.fromkeys(
        (3, 5, 7), "undecodable"
    )
    assert all(
        detail for detail, reason in zip(*(made[c].to_pylist() for c in ("detail", "reason")), strict=True) if reason
    )


def test_a_class_outside_the_list_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"class_name 'digit .*' is not in the class list"):
        Ingest(config.Ingest(), ["something else"])(rows())


def test_a_held_out_share_depends_on_the_row_alone() -> None:
    train = open_source("digits").read("train")
    stage = Ingest(config.Ingest(val_fraction=0.25), NAMES)
    whole = dict(zip(train["image_id"].to_pylist(), stage(train)["split"].to_pylist(), strict=True))
    part = stage(train.slice(100, 50))
    assert part["split"].to_pylist() == [whole[image_id] for image_id in part["image_id"].to_pylist()]
    assert sum(split == "val" for split in whole.values()) == pytest.approx(0.25 * len(train), rel=0.15)
