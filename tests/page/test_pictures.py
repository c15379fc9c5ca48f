"""Checks how images get onto the page: small ones whole, large ones small, many of them smaller."""

import base64
import io

import numpy as np
from PIL import Image

from vlcp_ray.images import encode_png
from vlcp_ray.page.pictures import preview, side_for, thumbnail


def png(size: int) -> bytes:
    return encode_png(np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8))


def opened(src: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))


def test_large_images_become_small_jpegs_and_small_ones_stay() -> None:
    large, small = preview(png(400), 104), preview(png(32), 104)
    assert (large["small"], small["small"]) == (False, True)
    assert (opened(large["src"]).format, opened(large["src"]).size) == ("JPEG", (104, 104))
    kept, original = (
        np.asarray(image.convert("RGB")) for image in (opened(small["src"]), Image.open(io.BytesIO(png(32))))
    )
    assert (kept == original).all()


def test_more_pictures_are_smaller_ones() -> None:
    sides = [side_for(count) for count in (1, 250, 251, 1000, 100_000)]
    assert sides == sorted(sides, reverse=True)
    # What compresses worst, in base64: the pictures of a page with so many stay below 5 MB.
    for count in (250, 600, 1200):
        assert count * len(preview(png(300), side_for(count))["src"]) < 6.5e6


def test_a_thumbnail_is_a_jpeg_of_two_kilobytes() -> None:
    made = thumbnail(png(224))
    assert Image.open(io.BytesIO(made)).size == (48, 48)
    assert len(made) < 3000
