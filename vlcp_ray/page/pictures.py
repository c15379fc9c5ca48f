"""Knows how images get onto the page: as small as their number asks, small ones pixel by pixel."""

import base64
import io
from functools import lru_cache
from typing import Any, Final

from vlcp_ray.images import decode

#: Longest side in pixels of an image that is kept as it is and shown enlarged.
SMALL: Final = 64
#: Longest side of a preview on a page with at most so many of them: some 3 MB in all.
_SIDES: Final = ((250, 144), (600, 104), (1200, 72))
_TINY: Final = 56
THUMBNAIL: Final = 48


def side_for(count: int) -> int:
    """The longest side in pixels of previews of which a page has so many."""
    return next((side for most, side in _SIDES if count <= most), _TINY)


def preview(data: bytes, side: int) -> dict[str, Any]:
    """An image file as `src`, a data URI, and `small`: kept pixel by pixel, else a JPEG of at most `side` pixels."""
    kind, content = _encoded(data, side)
    return {"src": f"data:image/{kind};base64,{base64.b64encode(content).decode()}", "small": kind == "png"}


def thumbnail(data: bytes, side: int = THUMBNAIL) -> bytes:
    """An image file as a JPEG of at most `side` pixels."""
    return _jpeg(decode(data), side)


@lru_cache(maxsize=4096)
def _encoded(data: bytes, side: int) -> tuple[str, bytes]:
    image = decode(data)
    if max(image.size) > SMALL:
        return "jpeg", _jpeg(image, side)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "png", buffer.getvalue()


def _jpeg(image: Any, side: int) -> bytes:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=78, optimize=True)
    return buffer.getvalue()
