"""Decode, check, crop and encode images, in one way everywhere."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

#: The accepted formats. Pillow can open more, some of them by running other programs where these are installed.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

Image.init()  # Pillow loads most of them only when asked

#: Modes with more than 8 bits a channel.
_DEEP_MODES: Final = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


class ImageError(ValueError):
    """Bytes that cannot be used as an image; `reason` is one of `schemas.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode(data: bytes) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    The image is turned by its EXIF tag; of an animation the first frame is taken; alpha is put over white; 16 bits are
    scaled to 8; CMYK and palettes are converted as Pillow does, without a colour profile.

    Raises:
        ImageError: the bytes are no image, or are truncated.
    """
    with _as_image_error():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        upright = _to_eight_bits(_upright(image))
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            layer = upright.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layer).convert("RGB")
        return upright.convert("RGB")


def check(data: bytes, max_pixels: int) -> None:
    """Check, at the least cost, that `decode` can read an image file to its end.

    JPEGs are decoded at an eighth of their size: every byte is read, a fraction of the pixels is computed.

    Raises:
        ImageError: there are no bytes, they are no image, are truncated, or hold more than `max_pixels` pixels.
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    with _as_image_error():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise ImageError("too_large", f"{image.width} x {image.height} pixels, the limit is {max_pixels}")
        image.draft(None, (1, 1))
        image.load()
        if image.mode in _DEEP_MODES:
            _to_eight_bits(image)


@contextmanager
def _as_image_error() -> Iterator[None]:
    """Turn any error of Pillow and its plugins on bad bytes into an `ImageError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `check` has a limit of its own
            warnings.simplefilter("ignore", UserWarning)  # odd metadata of an image that can be read
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except UnidentifiedImageError as error:  # its message contains an address in memory
        raise ImageError("undecodable", "the bytes are not an image in a format that Pillow can read") from error
    except Exception as error:  # decoders raise errors of all kinds on damaged bytes
        raise ImageError("undecodable", f"{type(error).__name__}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF tag asks; leave it where the tag cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        image.load()  # bad pixels still raise
        return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale deeper grey to 8 bits; Pillow itself would clip values above 255."""
    if image.mode not in _DEEP_MODES:
        return image
    grey = np.asarray(image).astype(np.int64)
    if image.mode == "F" or grey.min() < 0 or grey.max() >= 2**16:
        raise ImageError("undecodable", f"the range of values of mode {image.mode} is not known")
    return Image.fromarray(((grey * 255 + 2**15) // (2**16 - 1)).astype(np.uint8))


def decode_rows(
    data: Sequence[bytes], reasons: Sequence[str]
) -> tuple[dict[int, Image.Image], dict[int, tuple[str, str]]]:
    """Decode the images of the rows that are not rejected yet.

    Args:
        data: image files.
        reasons: why each row was rejected before, empty for good rows.

    Returns two dicts by row number: the images, and (reason, detail) where decoding failed.
    """
    decoded: dict[int, Image.Image] = {}
    errors: dict[int, tuple[str, str]] = {}
    for row, (content, reason) in enumerate(zip(data, reasons, strict=True)):
        if not reason:
            try:
                decoded[row] = decode(content)
            except ImageError as error:
                errors[row] = (error.reason, str(error))
    return decoded, errors


def encode_png(pixels: Pixels) -> bytes:
    """Encode an (h, w, 3) uint8 array as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def square(image: Image.Image, size: int) -> Pixels:
    """Resize both sides to `size`, whatever the aspect ratio. Returns (size, size, 3) uint8."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def center_crop(image: Image.Image, size: int, resize: int | None = None) -> Pixels:
    """Resize the short side to `resize`, else to `size`, then cut the middle of `size` pixels.

    Returns (size, size, 3) uint8.

    Raises:
        ValueError: `resize` is smaller than `size`.
    """
    short = size if resize is None else resize
    if short < size:
        raise ValueError(f"resize must be at least size, {size} pixels, not {short}")
    if image.size != (size, size) or short != size:
        scale = short / min(image.size)
        width, height = (max(short, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def stack(images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
    """Stack (h, w, 3) uint8 arrays to one (n, 3, h, w) float32 array in [-1, 1], the range diffusion models use."""
    batch = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray(batch / 127.5 - 1.0)
