"""Draw a distilled set as one picture: a row for each class."""

from collections.abc import Mapping, Sequence
from typing import Final

from PIL import Image, ImageDraw

from vlcp_ray.images import decode

#: The sides in pixels of an image, of the gap between two, and of the column of class names; the most rows and columns.
SIDE: Final = 96
_GAP: Final = 4
_NAME: Final = 160
MAX_CLASSES: Final = 50
MAX_IMAGES: Final = 20
_BACKGROUND: Final = "white"
_TEXT: Final = "black"


def contact_sheet(images: Mapping[str, Sequence[bytes]]) -> Image.Image:
    """Draw the first images of the first classes, each beside the name of its class.

    Args:
        images: image files by the name of their class.
    """
    shown = [(name, files[:MAX_IMAGES]) for name, files in list(images.items())[:MAX_CLASSES]]
    columns, step = max((len(files) for _, files in shown), default=0), SIDE + _GAP
    sheet = Image.new("RGB", (_NAME + columns * step, len(shown) * step + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for row, (name, files) in enumerate(shown):
        top = _GAP + row * step
        draw.text((_GAP, top + SIDE // 2), name, fill=_TEXT, anchor="lm", font_size=14)
        for column, file in enumerate(files):
            sheet.paste(_fit(decode(file)), (_NAME + column * step, top))
    return sheet


def _fit(image: Image.Image) -> Image.Image:
    """Scale an image to SIDE pixels; small ones keep their pixels as squares."""
    is_small = max(image.size) < SIDE
    return image.resize((SIDE, SIDE), Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS)
