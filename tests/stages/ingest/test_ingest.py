"""Tests of the settings of ingest and of the checks that later stages make on its manifest."""

from typing import Any

import pytest

from vlcp_ray.stages.ingest import Ingest, check_classes, check_val

MANIFEST: dict[str, Any] = {"class_names": ["cat", "dog", "cow"], "train": [5, 2, 1], "splits": {"train": 8}}


def test_ingest_settings_single_class_becomes_a_tuple() -> None:
    assert Ingest.model_validate({"classes": "imagenette"}).classes == ("imagenette",)


@pytest.mark.parametrize(
    ("ipc", "message"),
    [
        (2, "class 'cow' has only 1 usable training images, fewer than ipc = 2: lower ipc"),
        (3, r"class 'cow' has only 1 usable training images, fewer than ipc = 3 \(and 1 more classes\): lower ipc"),
    ],
)
def test_check_classes_below_ipc_names_the_smallest_class(ipc: int, message: str) -> None:
    check_classes(MANIFEST, ipc=1)
    with pytest.raises(ValueError, match=message):
        check_classes(MANIFEST, ipc)


def test_check_val_without_val_names_the_fix() -> None:
    check_val({"splits": {"train": 8, "val": 1}}, "teach")
    with pytest.raises(ValueError, match=r"teach: the image set has no val images; set ingest\.val_fraction, or"):
        check_val(MANIFEST, "teach")
