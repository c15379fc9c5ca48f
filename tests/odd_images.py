"""Build odd image files, such as the test pictures of Pillow, libvips, image-rs and wuffs hold: some good, some bad."""

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.image_sets import encoded, noise


def chunk(kind: bytes, content: bytes) -> bytes:
    """Build a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *chunks: bytes, interlaced: int = 0) -> bytes:
    """Build a PNG of any depth and kind of colour from its rows, each of which begins with a filter."""
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


#: name -> (file, the pixels in row order or None where they do not matter): transparent ones are white.
TRANSPARENT: Mapping[str, tuple[bytes, list[list[int]]]] = {
    "grey of 1 bit": (png((2, 1), 1, 0, b"\0\x40", chunk(b"tRNS", b"\0\0")), [[255] * 3, [255] * 3]),
    "grey of 2 bits": (
        png((4, 1), 2, 0, b"\0\x1b", chunk(b"tRNS", b"\0\2")),
        [[0] * 3, [85] * 3, [255] * 3, [255] * 3],
    ),
    "grey of 4 bits": (png((2, 1), 4, 0, b"\0\x07", chunk(b"tRNS", b"\0\0")), [[255] * 3, [119] * 3]),
    "grey of 8 bits": (png((2, 1), 8, 0, b"\0\x05\x06", chunk(b"tRNS", b"\0\5")), [[255] * 3, [6] * 3]),
    "grey of 16 bits": (
        png((2, 1), 16, 0, b"\0\x12\x34\x12\x35", chunk(b"tRNS", b"\x12\x34")),
        [[255] * 3, [18] * 3],
    ),
    "RGB of 8 bits": (
        png((2, 1), 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tRNS", b"\0\1\0\2\0\3")),
        [[255] * 3, [4, 5, 6]],
    ),
    "RGB of 16 bits": (
        png((2, 1), 16, 2, b"\0" + b"\x12\x34" * 3 + b"\xff\0\x80\0\0\0", chunk(b"tRNS", b"\x12\x34" * 3)),
        [[255] * 3, [255, 128, 0]],
    ),
    "palette": (
        png((2, 1), 8, 3, b"\0\0\1", chunk(b"PLTE", b"\xff\0\0\0\xff\0"), chunk(b"tRNS", b"\0")),
        [[255] * 3, [0, 255, 0]],
    ),
    "palette, half": (
        png((2, 1), 8, 3, b"\0\0\1", chunk(b"PLTE", b"\xff\0\0\0\xff\0"), chunk(b"tRNS", b"\x80")),
        [[255, 127, 127], [0, 255, 0]],
    ),
    "grey with alpha of 16 bits": (png((1, 1), 16, 4, b"\0\x12\x34\0\0"), [[255] * 3]),
}


def odd_images() -> Mapping[str, bytes]:
    """Build the files by name."""
    rgb = noise(1, (40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames: dict[str, Any] = {"save_all": True, "append_images": [noise(2, (40, 30))]}
    whole = {
        **{f"{mode} png": encoded(rgb.convert(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
        **{
            f"{mode} tiff": encoded(rgb.convert(mode), "TIFF")
            for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr")
        },
        **{f"{kind} tiff": encoded(rgb, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "tiff_deflate")},
        "float tiff": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        "int tiff": encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"),
        "16 bit png": encoded(Image.fromarray(np.arange(0, 65_000, 100, dtype=np.uint16).reshape(26, 25))),
        "CMYK jpeg": encoded(rgb.convert("CMYK"), "JPEG"),
        "progressive jpeg": encoded(rgb, "JPEG", progressive=True),
        "turned jpeg": encoded(rgb, "JPEG", exif=exif),
        "turned png": encoded(rgb, "PNG", exif=exif),
        "profile jpeg": encoded(rgb, "JPEG", icc_profile=profile),
        "broken profile png": encoded(rgb, "PNG", icc_profile=b"no profile"),
        "apng": encoded(rgb, "PNG", **frames),
        "animated gif": encoded(rgb, "GIF", **frames),
        "animated webp": encoded(rgb, "WEBP", **frames),
        "avif": encoded(rgb, "AVIF"),
        "jpeg 2000": encoded(rgb, "JPEG2000"),
        "ppm": encoded(rgb, "PPM"),
        "bmp": encoded(rgb, "BMP"),
        "interlaced png": png((1, 1), 8, 2, b"\0\1\2\3", interlaced=1),
        "one pixel": encoded(noise(3, (1, 1))),
        "one row": encoded(noise(3, (3_000, 1))),
        "no size": png((0, 0), 8, 2, b""),
        "no height": png((5, 0), 8, 2, b""),
        "huge": png((2**31 - 1, 2**31 - 1), 8, 2, b""),
        "wrong filter": png((1, 1), 8, 2, b"\x09\1\2\3"),
        "too few rows": png((9, 9), 8, 2, b"\0" + bytes(27)),
        "no zlib": png((1, 1), 8, 2, b"").replace(zlib.compress(b""), b"x" * len(zlib.compress(b""))),
        "palette of nothing": png((1, 1), 8, 3, b"\0\7"),
        "colour above its depth": png((2, 1), 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tRNS", b"\xff" * 6)),
        "grey above its depth": png((1, 1), 8, 0, b"\0\1", chunk(b"tRNS", b"\xff\xff")),
        "colour cut short": png((1, 1), 8, 2, b"\0\1\2\3", chunk(b"tRNS", b"\0")),
        "empty": b"",
        "text": b"this is text",
        "only a signature": b"\x89PNG\r\n\x1a\n",
        **{f"transparent {name}": content for name, (content, _) in TRANSPARENT.items()},
    }
    kinds = (
        "RGB png",
        "P png",
        "progressive jpeg",
        "turned jpeg",
        "animated gif",
        "animated webp",
        "avif",
        "jpeg 2000",
    )
    kinds += ("RGB tiff", "tiff_lzw tiff", "bmp", "ppm", "apng")
    cut = {
        f"{name} cut at {share}": whole[name][: len(whole[name]) * share // 100]
        for name in kinds
        for share in (1, 5, 20, 50, 80, 95, 99)
    }
    flipped = {f"{name} with zeros at {at}": _zeroed(whole[name], at) for name in kinds for at in (10, 40, 70)}
    return whole | cut | flipped


def _zeroed(content: bytes, percent: int) -> bytes:
    start = len(content) * percent // 100
    return content[:start] + bytes(8) + content[start + 8 :]
