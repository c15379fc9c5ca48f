"""Tests of the images of the report: previews by size and number, thumbnails, bytes of a split."""

import base64
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.stages.report.small_report import synthetic
from vlcp_ray.images import encode_png
from vlcp_ray.stages.report.images import count_bytes, preview, preview_side, thumbnail, thumbnails
from vlcp_ray.store.artifact import Artifact, Step, Store
from vlcp_ray.store.io import StoreError


def png(size: int) -> bytes:
    return encode_png(np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8))


def open_image(src: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """300 classes of 2 images of 224 pixels."""
    return synthetic(300, 2, png(224))


@pytest.fixture
def artifact(table: pa.Table, tmp_path: Path) -> Artifact:
    """The table in two files, read in several batches."""
    artifact = Store.at(str(tmp_path)).artifact(Step("generate", 1, {}))
    artifact.write_table("synthetic/a.parquet", table.slice(0, 400))
    artifact.write_table("synthetic/b.parquet", table.slice(400))
    return artifact


def test_preview_of_large_image_is_small_jpeg_and_of_small_one_lossless() -> None:
    large, small = preview(png(400), 104), preview(png(32), 104)
    assert (large["small"], small["small"]) == (False, True)
    assert (open_image(large["src"]).format, open_image(large["src"]).size) == ("JPEG", (104, 104))
    kept, original = (
        np.asarray(image.convert("RGB")) for image in (open_image(small["src"]), Image.open(io.BytesIO(png(32))))
    )
    assert (kept == original).all()


def test_preview_side_is_smaller_for_more_images() -> None:
    sides = [preview_side(count) for count in (1, 250, 251, 1000, 100_000)]
    assert sides == sorted(sides, reverse=True)
    # Noise, which compresses worst, in base64: all previews of a page stay below 6.5 MB.
    for count in (250, 600, 1200):
        assert count * len(preview(png(300), preview_side(count))["src"]) < 6.5e6


def test_thumbnail_is_a_jpeg_of_two_kilobytes() -> None:
    image = thumbnail(png(224))
    assert Image.open(io.BytesIO(image)).size == (48, 48)
    assert len(image) < 3000


def test_count_bytes_adds_up_the_files_of_a_split(artifact: Artifact) -> None:
    assert count_bytes(artifact, "synthetic", "train") == 600 * len(png(224))
    assert count_bytes(artifact, "synthetic", "val") == 0


def test_thumbnails_are_those_of_the_ids(artifact: Artifact) -> None:
    small = thumbnails(artifact, ["7-0", "299-1"]).sort_by("label")
    assert small["label"].to_pylist() == [7, 299]
    assert small["class_name"][0].as_py() == "class <7>"
    assert Image.open(io.BytesIO(small["image"][0].as_py())).size == (48, 48)


def test_preview_side_changes_after_the_last_count_of_each_step() -> None:
    sides = {count: preview_side(count) for count in (0, 250, 251, 600, 601, 1200, 1201)}
    assert sides == {0: 144, 250: 144, 251: 104, 600: 104, 601: 72, 1200: 72, 1201: 56}


def test_preview_of_64_pixels_is_lossless_and_of_65_is_not() -> None:
    assert preview(png(64), 48)["small"] is True
    assert preview(png(65), 48)["small"] is False
    assert open_image(preview(png(64), 48)["src"]).size == (64, 64)
    wide = preview(encode_png(np.zeros((20, 80, 3), np.uint8)), 40)
    assert open_image(wide["src"]).size == (40, 10)


def test_count_bytes_of_a_damaged_file_names_the_repair(artifact: Artifact) -> None:
    file = Path(artifact.path, "synthetic", "b.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    with pytest.raises(StoreError, match=r"/synthetic cannot be read \(.*\); the artifact is damaged"):
        count_bytes(artifact, "synthetic", "train")
