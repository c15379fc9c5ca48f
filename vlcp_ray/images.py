"""Knows how bytes become pixels and pixels become bytes, safely and in one way everywhere."""

import io
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]

#: More pixels than any photograph of ImageNet by far; a decompression bomb has more.
MAX_PIXELS: Final = 64_000_000


class ImageError(ValueError):
    """Bytes that cannot be used as an image; `reason` is a word of `schemas.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to 8-bit RGB: upright by its EXIF tag, first frame, alpha over white.

    Raises:
        ImageError: the bytes are no image, are cut short, or hold more than `max_pixels` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is checked below
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise ImageError("too_large", f"{image.width} x {image.height} pixels, the limit is {max_pixels}")
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            layer = upright.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layer).convert("RGB")
        return upright.convert("RGB")
    except ImageError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ImageError("undecodable", f"{type(error).__name__}: {error}") from error


def decode_rows(
    data: Sequence[bytes], reasons: Sequence[str]
) -> tuple[dict[int, Image.Image], dict[int, tuple[str, str]]]:
    """The images of the rows that have no reason to be left out yet, and what is wrong with those that have none.

    Returns both by row number: images, and (reason, detail) of bytes that cannot be decoded.
    """
    found: dict[int, Image.Image] = {}
    faults: dict[int, tuple[str, str]] = {}
    for row, (content, reason) in enumerate(zip(data, reasons, strict=True)):
        if not reason:
            try:
                found[row] = decode(content)
            except ImageError as error:
                faults[row] = (error.reason, str(error))
    return found, faults


def encode_png(pixels: Pixels) -> bytes:
    """PNG bytes of an (h, w, 3) uint8 array."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def square(image: Image.Image, size: int) -> Pixels:
    """Resize both sides to `size`, whatever the aspect ratio (METHOD 2.3). Returns (size, size, 3) uint8."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def center_crop(image: Image.Image, size: int) -> Pixels:
    """Resize the short side to `size`, then cut the middle (METHOD 2.2). Returns (size, size, 3) uint8."""
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def stack(images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
    """(n, h, w, 3) uint8 arrays as one (n, 3, h, w) float32 array in [-1, 1], the range diffusion models use."""
    batch = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray(batch / 127.5 - 1.0)
