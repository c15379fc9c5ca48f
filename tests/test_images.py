"""Whether bytes of every kind become the same pixels, and bad bytes a reason."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlcp_ray.images import ImageError, center_crop, decode, decode_rows, encode_png, square, stack


def data(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def red(mode: str, size: tuple[int, int] = (4, 6)) -> Image.Image:
    return Image.new("RGB", size, (255, 0, 0)).convert(mode)


def test_png_round_trip_is_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(encode_png(pixels))), pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = decode(data(red(mode), "TIFF"))
    assert image.mode == "RGB"
    assert image.size == (4, 6)


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert np.asarray(decode(data(image))).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees
    assert decode(data(red("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)


def test_bombs_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ImageError, match="100 x 100 pixels, the limit is 9999") as caught:
        decode(data(red("RGB", (100, 100))), max_pixels=9_999)
    assert caught.value.reason == "too_large"


def test_truncated_files_are_undecodable() -> None:
    whole = data(Image.effect_noise((64, 64), 50), "JPEG")
    with pytest.raises(ImageError) as caught:
        decode(whole[: len(whole) // 2])
    assert caught.value.reason == "undecodable"


@given(st.binary(max_size=200))
def test_no_bytes_crash(junk: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(junk)
    assert caught.value.reason == "undecodable"


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([8, 16]))
def test_views_have_the_asked_size(width: int, height: int, size: int) -> None:
    image = Image.new("RGB", (width, height))
    assert square(image, size).shape == center_crop(image, size).shape == (size, size, 3)


def test_center_crop_cuts_the_middle() -> None:
    image = Image.new("RGB", (24, 8))
    image.paste((255, 255, 255), (8, 0, 16, 8))
    assert center_crop(image, 8).min() == 255


def test_stack_has_the_models_range() -> None:
    batch = stack([np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)])
    assert batch.shape == (2, 3, 2, 2)
    assert batch.dtype == np.float32
    assert (batch[0] == -1).all()
    assert (batch[1] == 1).all()


def test_rows_are_decoded_or_told_what_is_wrong_and_rejected_ones_are_left_alone() -> None:
    found, faults = decode_rows([data(red("RGB")), b"junk", b"junk"], ["", "", "empty_caption"])
    assert {row: image.size for row, image in found.items()} == {0: (4, 6)}
    assert {row: reason for row, (reason, _) in faults.items()} == {1: "undecodable"}
