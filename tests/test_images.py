"""Tests of decoding, checking, cropping and encoding images."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.odd_images import TRANSPARENT, odd_images
from vlcp_ray.images import HAS_HEIF, ImageError, center_crop, check, decode, decode_rows, describe, encode_png, square


def data(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def red(mode: str, size: tuple[int, int] = (4, 6)) -> Image.Image:
    return Image.new("RGB", size, (255, 0, 0)).convert(mode)


def noise(size: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_encode_png_decodes_to_the_same_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(encode_png(pixels))), pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK", "1"])
def test_decode_of_every_mode_gives_rgb(mode: str) -> None:
    image = decode(data(red(mode), "TIFF"))
    assert image.mode == "RGB"
    assert image.size == (4, 6)


def test_decode_of_transparent_pixels_gives_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert np.asarray(decode(data(image))).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_decode_applies_exif_rotation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees
    assert decode(data(red("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)


def test_decode_of_adobes_inverted_cmyk_gives_red() -> None:
    red_pixel = np.asarray(decode(data(red("CMYK", (8, 8)), "JPEG", quality=95)))[4, 4]
    assert red_pixel[0] > 200
    assert max(red_pixel[1:]) < 60


def test_decode_of_sixteen_bits_scales_them() -> None:
    grey = Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16))
    assert np.asarray(decode(data(grey)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_decode_of_unknown_range_is_refused() -> None:
    with pytest.raises(ImageError, match="range of values of mode F is not known"):
        decode(data(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
    with pytest.raises(ImageError, match="range of values of mode F is not known"):
        check(data(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), 100)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_decode_of_an_animation_takes_the_first_frame(kind: str) -> None:
    frames = [red("RGB", (16, 16)), Image.new("RGB", (16, 16), (0, 0, 255))]
    content = data(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.asarray(decode(content))[8, 8].argmax() == 0
    check(content, 256)


def test_check_of_a_decompression_bomb_refuses_before_decoding() -> None:
    with pytest.raises(ImageError, match="100 x 100 pixels, the limit is 9999") as caught:
        check(data(red("RGB", (100, 100))), max_pixels=9_999)
    assert caught.value.reason == "too_large"


def test_decode_over_pillows_limit_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)  # it raises above twice as many
    with pytest.raises(ImageError) as caught:
        check(data(red("RGB", (100, 100))), max_pixels=10**6)
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_check_and_decode_of_a_truncated_file_are_undecodable(kind: str, share: float) -> None:
    whole = data(noise(200), kind)
    check(whole, 10**6)
    for function in (decode, lambda content: check(content, 10**6)):
        with pytest.raises(ImageError) as caught:
            function(whole[: int(len(whole) * share)])
        assert caught.value.reason == "undecodable"


@given(st.binary(max_size=200))
def test_check_of_any_bytes_never_crashes(junk: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(junk)
    assert caught.value.reason == "undecodable"
    with pytest.raises(ImageError) as caught:
        check(junk, 10**6)
    assert caught.value.reason == ("undecodable" if junk else "empty")


def test_decode_with_unreadable_exif_keeps_the_pixels() -> None:
    content = data(noise(16), "PNG", exif=b"Exif\x00\x00this is no TIFF header")
    check(content, 10**6)
    np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(noise(16)))


def test_decode_of_formats_that_run_programs_is_refused() -> None:
    with pytest.raises(ImageError, match="not an image in a format that Pillow can read"):
        decode(data(noise(16), "EPS"))


@settings(deadline=None)
@given(st.data())
def test_decode_of_checked_bytes_succeeds(drawn: st.DataObject) -> None:
    """Bytes of a real image with a few of them changed: the check never lets through what the decoder refuses."""
    kind = drawn.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = bytearray(data(noise(24), kind, **({} if kind == "GIF" else {"exif": exif})))
    for _ in range(drawn.draw(st.integers(1, 4))):
        content[drawn.draw(st.integers(0, len(content) - 1))] = drawn.draw(st.integers(0, 255))
    try:
        check(bytes(content), 10**6)
    except ImageError:
        return
    decode(bytes(content))


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([8, 16]))
def test_square_and_center_crop_have_the_wanted_size(width: int, height: int, size: int) -> None:
    image = Image.new("RGB", (width, height))
    assert square(image, size).shape == center_crop(image, size).shape == (size, size, 3)


def test_center_crop_keeps_the_middle() -> None:
    image = Image.new("RGB", (24, 8))
    image.paste((255, 255, 255), (8, 0, 16, 8))
    assert center_crop(image, 8).min() == 255


def test_decode_rows_skips_rejected_rows_and_reports_bad_ones() -> None:
    found, faults = decode_rows([data(red("RGB")), b"junk", b"junk"], ["", "", "empty_caption"])
    assert {row: image.size for row, image in found.items()} == {0: (4, 6)}
    assert {row: reason for row, (reason, _) in faults.items()} == {1: "undecodable"}


def test_center_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="resize must be at least size, 16 pixels, not 8"):
        center_crop(Image.new("RGB", (32, 32)), 16, 8)


def outcome(function: Callable[[], object]) -> str:
    """Return the reason of a refusal, or "" for an accepted image."""
    try:
        function()
    except ImageError as error:
        return error.reason
    return ""


@pytest.mark.parametrize("name", odd_images())
def test_check_and_decode_agree_on_odd_images(name: str) -> None:
    content = odd_images()[name]
    checked = outcome(lambda: check(content, 10**7))
    decoded = outcome(lambda: decode(content))
    assert bool(checked) == bool(decoded)


def test_odd_images_are_accepted_and_refused() -> None:
    """Neither function may agree by accepting all of them, or none."""
    reasons = {name: outcome(lambda content=content: check(content, 10**7)) for name, content in odd_images().items()}
    refused = {name: reason for name, reason in reasons.items() if reason and " at " not in name}
    assert refused == {
        "float tiff": "undecodable",
        "int tiff": "undecodable",
        "no size": "undecodable",
        "no height": "undecodable",
        "huge": "too_large",
        "wrong filter": "undecodable",
        "no zlib": "undecodable",
        "empty": "empty",
        "text": "undecodable",
        "only a signature": "undecodable",
        "colour cut short": "undecodable",
    }
    assert all(reason for name, reason in reasons.items() if name.endswith(("cut at 1", "cut at 5", "cut at 50")))


@pytest.mark.parametrize("name", TRANSPARENT)
def test_decode_of_a_transparent_colour_gives_white(name: str) -> None:
    content, pixels = TRANSPARENT[name]
    check(content, 100)
    assert np.asarray(decode(content)).reshape(-1, 3).tolist() == pixels


def test_decode_of_a_png_with_a_damaged_stream_is_refused_also_the_second_time() -> None:
    """Pillow gives the pixels of a damaged PNG to whoever asks again after the error."""
    content = bytearray(data(noise(128)))
    at = content.index(b"IDAT") + 20_000
    content[at : at + 64] = bytes(64)
    for function in (decode, lambda content: check(content, 10**6)):
        assert outcome(lambda function=function: function(bytes(content))) == "undecodable"


def swapped_profile() -> bytes:
    """Return a profile whose red is that of sRGB's green, and its green sRGB's red."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132])
    entries = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * count, 12)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    at = int.from_bytes(profile[entries[b"desc"] + 4 :][:4])
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")) if at else bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_decode_converts_colours_by_the_profile(kind: str, mode: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 20, 40)).convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    content = data(image, kind, icc_profile=swapped_profile(), **options)
    plain = np.asarray(decode(data(image, kind, **options))).astype(int)
    pixels = np.asarray(decode(content)).astype(int)
    assert np.abs(pixels[0, 0] - plain[0, 0][[1, 0, 2]]).max() <= 3
    check(content, 100)


def test_decode_of_a_transparent_colour_with_a_profile_is_white() -> None:
    image = Image.new("RGB", (4, 4), (200, 20, 40))
    for profile in (None, swapped_profile()):
        content = data(image, "PNG", transparency=(200, 20, 40), icc_profile=profile)
        assert np.asarray(decode(content)).min() == 255


def test_decode_of_srgb_and_damaged_profiles_changes_nothing() -> None:
    image = noise(20)
    plain = np.asarray(image)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", swapped_profile()[:200], b""):
        content = data(image, "PNG", icc_profile=profile)
        np.testing.assert_array_equal(np.asarray(decode(content)), plain)
        check(content, 1000)


def test_decode_of_a_grey_profile_and_of_16_bits_keeps_what_is_meant() -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    content = data(grey, "PNG", icc_profile=swapped_profile())  # a profile of three colours for one
    np.testing.assert_array_equal(np.asarray(decode(content))[..., 0], np.asarray(grey))


def test_describe_reads_format_and_size() -> None:
    assert describe(data(red("RGB", (30, 20)), "WEBP")) == ("WEBP", 30, 20)
    with pytest.raises(ImageError):
        describe(b"no image")


@pytest.mark.skipif(not HAS_HEIF, reason="pillow-heif is not installed")
def test_heic_is_checked_turned_and_put_over_white() -> None:
    image = Image.effect_mandelbrot((64, 48), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    content = data(image, "HEIF", quality=95)
    check(content, 64 * 48)
    assert describe(content) == ("HEIF", 64, 48)
    assert np.abs(np.asarray(decode(content), int) - np.asarray(image, int)).mean() < 2
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(data(image, "HEIF", exif=exif.tobytes())).size == (48, 64)
    image.putalpha(0)
    assert np.asarray(decode(data(image, "HEIF"))).min() == 255
    with pytest.raises(ImageError, match="pixels, the limit is 100"):
        check(content, 100)
    for size in (100, len(content) // 2, len(content) - 10):
        with pytest.raises(ImageError) as error:
            check(content[:size], 10**6)
        assert error.value.reason == "undecodable"
