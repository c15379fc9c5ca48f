"""Tests of the settings of ingest and of the checks that later stages make on its manifest."""

from pathlib import Path
from typing import Any

import pytest

from tests.image_sets import write_files
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.ingest import Expect, Ingest, check_images, check_source, compare_expected, format_skipped

MANIFEST: dict[str, Any] = {"class_names": ["cat", "dog", "cow"], "train": [5, 2, 1], "val": [0, 0, 0]} | {
    "splits": {"train": 8}
}


def test_ingest_settings_single_class_becomes_a_tuple() -> None:
    assert Ingest.model_validate({"classes": "imagenette"}).classes == ("imagenette",)


@pytest.mark.parametrize(
    ("ipc", "message"),
    [
        (2, "class 'cow' has only 1 usable training image, fewer than ipc = 2: lower ipc, add images, or name the"),
        (3, r"class 'cow' has only 1 usable training image, fewer than ipc = 3 \(and 1 more class\): lower ipc"),
    ],
)
def test_check_images_below_ipc_names_the_smallest_class(ipc: int, message: str) -> None:
    check_images(MANIFEST, 1, needs_val=False)
    with pytest.raises(ConfigError, match=message):
        check_images(MANIFEST, ipc, needs_val=False)


def test_check_images_names_a_class_without_images() -> None:
    with pytest.raises(
        ConfigError, match="class 'cow' has no usable training images, fewer than ipc = 1: add images, or name"
    ):
        check_images(MANIFEST | {"train": [5, 2, 0]}, 1, needs_val=False)


def test_check_images_without_val_names_the_fix() -> None:
    with pytest.raises(ConfigError, match=r"no val images, on which sets are evaluated; set ingest\.val_fraction"):
        check_images(MANIFEST, 1, needs_val=True)


def test_check_images_names_the_classes_without_val() -> None:
    manifest = MANIFEST | {"splits": {"train": 8, "val": 2}}
    check_images(manifest | {"val": [1, 1, 1]}, 1, needs_val=True)
    check_images(manifest | {"val": [2, 0, 0]}, 1, needs_val=False)
    with pytest.raises(ConfigError, match="class 'dog' and 1 more of train has no usable val images"):
        check_images(manifest | {"val": [2, 0, 0]}, 1, needs_val=True)


def test_check_images_finds_a_class_with_two_names() -> None:
    manifest = {"class_names": ["Black Cat", "black_cat", "dog"], "train": [5, 0, 5], "val": [0, 2, 2]}
    words = "; train has 'Black Cat' and val has 'black_cat': if they are one class, rename one of the folders"
    for ipc in (1, 0):  # the class without train, or without val, is named
        with pytest.raises(ConfigError) as error:
            check_images(manifest | {"splits": {"val": 4}}, ipc, needs_val=True)
        assert words in str(error.value)
    other = manifest | {"class_names": ["black cat", "dog", "cow"], "splits": {"val": 4}}
    with pytest.raises(ConfigError) as error:
        check_images(other, 1, needs_val=True)
    assert "if they are one class" not in str(error.value)


def test_compare_expected_warns_of_another_split() -> None:
    settings = Ingest(expect=Expect(classes=10, train=12_894, val=500, gib=1.4))
    assert compare_expected(settings, 12_894, 500) == ""
    assert compare_expected(settings, 12_300, 480) == ""
    text = "the job expects 12,894 train and 500 val images, the set has 9,469 and 3,925: another split"
    assert compare_expected(settings, 9_469, 3_925).startswith(text)
    assert compare_expected(settings, 12_894, 3_925)
    assert compare_expected(settings.model_copy(update={"val_fraction": 0.1}), 11_600, 1_294) == ""
    assert compare_expected(settings.model_copy(update={"val_fraction": 0.1}), 12_894, 0) == ""
    assert compare_expected(settings.model_copy(update={"val_fraction": 0.1}), 8_500, 969)
    assert compare_expected(settings.model_copy(update={"max_per_class": 5}), 50, 50) == ""
    assert compare_expected(Ingest(), 1, 1) == ""


def test_check_source_of_one_class_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"train/cat/1.jpg": b"", "val/cat/2.jpg": b""})
    with pytest.raises(ConfigError, match="1 class: 'cat', and a classifier needs two"):
        check_source(Ingest(source=str(tmp_path)), needs_val=True)
    check_source(Ingest(source=str(tmp_path)), needs_val=False)
    with pytest.raises(ConfigError, match="the image set has one class, and a classifier needs two"):
        check_images({"class_names": ["cat"], "train": [5], "val": [5], "splits": {"val": 5}}, 1, needs_val=True)


def test_check_source_without_val_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    write_files(tmp_path, {"cat/1.jpg": b"", "dog/2.jpg": b""})
    check_source(Ingest(source=str(tmp_path)), needs_val=False)
    check_source(Ingest(source=str(tmp_path), val_fraction=0.5), needs_val=True)
    with pytest.raises(ConfigError, match="an image folder with train, 2 classes, and has no val images"):
        check_source(Ingest(source=str(tmp_path)), needs_val=True)


def test_format_skipped_lists_the_first_suffixes_and_counts_the_others() -> None:
    assert format_skipped({".heic": 3, "no suffix": 1}).startswith("3 .heic files, 1 no suffix file; .heic is read")
    assert format_skipped({"val images of classes that train lacks": 5}) == "5 val images of classes that train lacks"
    many = {f".{number}": 2 for number in range(300)}
    assert format_skipped(many).endswith(", 2 .7 files, 584 others")
