"""Decode, check, crop and encode images, in one way everywhere."""

import io
import json
import os
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

#: Whether .heic files are read, by pillow-heif where that is installed.
HAS_HEIF: Final = find_spec("pillow_heif") is not None
#: The accepted formats. Pillow can open more, some of them by running other programs where these are installed.
FORMATS: Final = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"),
    *(["HEIF"] if HAS_HEIF else []),
)

#: How pixels are read, for the reference: what an image may be, and what becomes of it.
RULES: Final = {
    "formats": "JPEG, MPO, PNG, APNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF; HEIC where pillow-heif is installed. "
    "The bytes tell the format, not the suffix",
    "animation, several pages": "the first picture",
    "EXIF orientation": "the image is turned upright; a damaged tag is ignored",
    "transparency": "put over white",
    "palette, grey": "RGB; the transparent colour of a PNG is put over white at every depth",
    "16 bits a channel": "scaled to 8; grey with values below 0 or above 65,535, or in floating point, is undecodable",
    "ICC profile": "converted to sRGB by littleCMS; a damaged profile is ignored",
    "CMYK without a profile": "RGB as Pillow converts it",
    "gain map of an HDR photograph": "ignored: the base picture is read",
    "cut short, broken data": "undecodable",
    "too large": "too_large above `ingest.max_bytes`, `ingest.max_pixels` or the memory that these need",
    "too slow": "too_slow above `ingest.max_seconds`, or where a JPEG repeats its scans",
}

#: Of `serve_checks`: the head of a request, the size of a file, and the line that it writes when it is ready for one.
CHECK_REQUEST: Final = "=QQd"
CHECK_SIZE: Final = "=Q"
CHECK_READY: Final = b"ready\n"
_MEMORY: Final = 2**29  # bytes that `serve_checks` may use, besides those for the pixels
_MEMORY_PER_PIXEL: Final = 32  # JPEG 2000 takes 16 for four channels, and a copy

Image.init()  # Pillow loads most of them only when asked
if HAS_HEIF:
    import_module("pillow_heif").register_heif_opener()

#: Modes with more than 8 bits a channel.
_DEEP_MODES: Final = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
#: Modes whose conversion to RGB cannot fail.
_PLAIN_MODES: Final = frozenset({"RGB", "L", "CMYK", "YCbCr"})
#: Modes whose colours a profile describes, and the modes that they become.
_PROFILE_MODES: Final = {"RGB": "RGB", "RGBA": "RGBA", "L": "RGB", "CMYK": "RGB"}
_MAX_PROFILE: Final = 2**23  # bytes; those of printers have 2 MB
#: Levels of the greys of PNGs that Pillow scales to 256.
_GREY_LEVELS: Final = {"L;2": 4, "L;4": 16}
_PIECES: Final = (273, 324)  # tags of TIFF: where its strips or tiles are, each a picture of its own
_MAX_SCANS: Final = 20  # of a JPEG with `max_pixels`; smaller ones may have more. Progressive JPEGs have about 10


class ImageError(ValueError):
    """Bytes that cannot be used as an image; `reason` is one of `schemas.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode(data: bytes) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    The image is turned by its EXIF tag; of an animation the first frame is taken; alpha is put over white; 16 bits are
    scaled to 8; colours with a profile are converted to sRGB, others as Pillow does. A damaged profile is ignored.

    Raises:
        ImageError: the bytes are no image, or are truncated.
    """
    with _as_image_error():
        image = _open(data)
        image.load()
        return _to_rgb(_upright(image))


def check(data: bytes, max_pixels: int) -> None:
    """Check, at the least cost, that `decode` can read an image file to its end.

    JPEGs are decoded at an eighth of their size: every byte is read, a fraction of the pixels is computed.

    Raises:
        ImageError: there are no bytes, they are no image, are truncated, hold more than `max_pixels` pixels, or are a
            JPEG that describes them again and again.
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    with _as_image_error():
        image = _open(data)
        if image.width * image.height > max_pixels:
            raise ImageError("too_large", f"{image.width} x {image.height} pixels, the limit is {max_pixels}")
        _check_scans(image, data, max_pixels)
        image.draft(None, (1, 1))
        image.load()
        if image.mode not in _PLAIN_MODES or "transparency" in image.info or "icc_profile" in image.info:
            _to_rgb(image)


def describe(data: bytes) -> tuple[str, int, int]:
    """Return the format, the width and the height of an image file; its pixels are not read.

    Raises:
        ImageError: the bytes are no image.
    """
    with _as_image_error():
        image = _open(data)
        return str(image.format), image.width, image.height


def serve_checks(contents: int, answers: int) -> None:
    """Check images until standard input ends, each within its processor time and memory.

    A request is CHECK_REQUEST (number of images, `max_pixels`, seconds for each) and the CHECK_SIZE of each image. The
    answer to an image is a line of JSON with reason and detail, empty for a good image. SIGPROF ends the process where
    an image takes too long: the answers to those before it are written.

    Args:
        contents: file descriptor; the images of a request are one after the other at its start.
        answers: file descriptor that answers are appended to.
    """
    requests = sys.stdin.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the caller, and then the input
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _write_ready()
    while head := requests.read(struct.calcsize(CHECK_REQUEST)):
        count, max_pixels, seconds = struct.unpack(CHECK_REQUEST, head)
        memory = _MEMORY + _MEMORY_PER_PIXEL * max_pixels
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard == resource.RLIM_INFINITY or hard >= memory:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))
        place = 0
        for (size,) in struct.iter_unpack(CHECK_SIZE, requests.read(count * struct.calcsize(CHECK_SIZE))):
            data = os.pread(contents, size, place)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            answer = ("", "")
            try:
                check(data, max_pixels)
            except ImageError as error:
                answer = (error.reason, str(error))
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(answers, json.dumps(answer).encode() + b"\n")
            place += size
        _write_ready()


def _write_ready() -> None:
    sys.stdout.buffer.write(CHECK_READY)
    sys.stdout.buffer.flush()


def _open(data: bytes) -> Image.Image:
    """Read the header of an image; the transparent colour of a PNG is scaled as Pillow scales its pixels."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    colour = image.info.get("transparency")
    raw = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    if isinstance(colour, int) and image.mode == "L":
        levels = _GREY_LEVELS.get(str(raw), 256)
        image.info["transparency"] = colour % levels * 255 // (levels - 1)
    elif isinstance(colour, tuple) and image.mode == "RGB":
        image.info["transparency"] = tuple(value >> 8 if raw == "RGB;16B" else value % 256 for value in colour)
    return image


def _check_scans(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse a JPEG whose scans take longer than those of the largest picture: the same ones can be repeated for hours.

    Also of TIFF, which can hold JPEGs. A scan takes 1 s for 10^9 pixels.
    """
    if image.format not in ("JPEG", "MPO", "TIFF"):
        return
    tags = getattr(image, "tag_v2", {})
    pieces = max(1, *(len(tags.get(tag, ())) for tag in _PIECES))
    scans = -(-data.count(b"\xff\xda") // pieces)
    if scans * image.width * image.height > _MAX_SCANS * max_pixels:
        limit = _MAX_SCANS * max_pixels // (image.width * image.height)
        raise ImageError("too_slow", f"{image.width} x {image.height} pixels in {scans} scans, the limit is {limit}")


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
    except MemoryError as error:
        raise ImageError("too_large", "decoding takes more memory than max_pixels needs") from error
    except Exception as error:  # decoders raise errors of all kinds on damaged bytes
        raise ImageError("undecodable", f"{type(error).__name__}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF tag asks; leave it where the tag cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        image.load()  # bad pixels still raise
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to RGB, with transparent pixels over white."""
    image = _to_srgb(_to_eight_bits(image))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert the colours of an image of 8 bits by its profile."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or len(profile) > _MAX_PROFILE:
        return image
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    transform = _transform(profile, image.mode) if image.mode in _PROFILE_MODES else None
    if transform is None:
        return image
    try:
        converted = ImageCms.applyTransform(image, transform)
    except (ValueError, ImageCms.PyCMSError):
        return image
    return converted or image


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a profile to sRGB; None for sRGB itself, a damaged profile, or one of other colours."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(source).strip().startswith("sRGB"):
            return None
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        # Without a cache of its last pixel one transform can be used by several threads.
        return ImageCms.buildTransform(source, target, mode, _PROFILE_MODES[mode], flags=ImageCms.Flags.NOCACHE)
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale deeper grey to 8 bits; Pillow itself would clip values above 255, and lose the transparent one."""
    if image.mode not in _DEEP_MODES:
        return image
    grey = np.asarray(image)
    if image.mode == "F" or grey.min() < 0 or grey.max() >= 2**16:
        raise ImageError("undecodable", f"the range of values of mode {image.mode} is not known")
    scaled = Image.fromarray(((grey.astype(np.uint32) * 255 + 2**15) // (2**16 - 1)).astype(np.uint8))
    if not isinstance(colour := image.info.get("transparency"), int):
        return scaled
    opaque = Image.fromarray(np.where(grey == colour, 0, 255).astype(np.uint8))
    return Image.merge("LA", (scaled, opaque))


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
