"""Draw printed digits and letters, on which the tiny Stable Diffusion is trained: it never sees a handwritten one."""

import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vlcp_ray.demo import digits
from vlcp_ray.seeds import seed_for

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

# Fonts of matplotlib (DejaVu, STIX, Computer Modern) that have all 62 characters; the others of those families have
# symbols instead, or old-style digits.
FONTS: Final = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmti10",
    "cmtt10",
)
NAMES: Final = {
    **dict(zip(string.digits, digits.CLASS_NAMES, strict=True)),
    **{letter: f"small letter {letter}" for letter in string.ascii_lowercase},
    **{letter: f"capital letter {letter.lower()}" for letter in string.ascii_uppercase},
}
COUNT: Final = 24_000  # glyphs that the models are trained on
_FONT_SIZE: Final = 72  # of the drawing that is scaled down
_CANVAS: Final = 160  # sides of that drawing, in pixels
_WIDEST: Final = 30.0  # pixels of a glyph before slant and weight: W and M are made narrower


@dataclass(frozen=True)
class Style:
    """How a glyph is drawn.

    Args:
        font: one of FONTS.
        weight: pixels that the outline is moved outwards (or inwards, if negative) in a drawing of 72 pixels per em.
        slant: shear, positive to the right.
        height: of a capital letter, in pixels of the 32.
        width: factor of the glyph's width.
        right, down: offset of the glyph's centre, in pixels.
        brightness: of the brightest cell, 0 to 1.
        cells: pixels per side before the image is enlarged to 32; fewer are more blurred.
        noise: standard deviation of the brightness of the inked cells.
    """

    font: str = FONTS[0]
    weight: int = 0
    slant: float = 0.0
    height: float = 26.0
    width: float = 1.0
    right: float = 0.0
    down: float = 0.0
    brightness: float = 1.0
    cells: int = 16
    noise: float = 0.0


def random_style(rng: np.random.Generator) -> Style:
    """Choose font, slant, weight, width, size, place, brightness, sharpness and noise at random."""
    return Style(
        font=FONTS[rng.integers(len(FONTS))],
        weight=int(rng.integers(-1, 6)),
        slant=float(rng.uniform(-0.45, 0.25)),
        height=float(rng.uniform(23, 31)),
        width=float(rng.uniform(0.65, 1.1)),
        right=float(rng.uniform(-1.5, 1.5)),
        down=float(rng.uniform(-1.5, 1.5)),
        brightness=float(rng.uniform(0.8, 1)),
        cells=int(rng.integers(7, 15)),
        noise=float(rng.uniform(0, 0.1)),
    )


def draw(character: str, style: Style, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a glyph, light on black.

    Args:
        character: one of NAMES.
        style: of the glyph.
        rng: source of the noise.

    Returns:
        (32, 32, 3) uint8.
    """
    from PIL import Image, ImageDraw, ImageFilter

    side = digits.RESOLUTION
    large = Image.new("L", (_CANVAS, _CANVAS))
    pen = ImageDraw.Draw(large)
    middle = (_CANVAS / 2, _CANVAS / 2)
    pen.text(middle, character, font=_font(style.font), fill=255, anchor="mm", stroke_width=max(style.weight, 0))
    if style.weight < 0:
        large = large.filter(ImageFilter.MinFilter(1 - 2 * style.weight))
    left, top, right, bottom = large.getbbox() or (0, 0, _CANVAS, _CANVAS)
    # Large pixels per small pixel, with a map of centre to centre.
    down_scale = _capital_height(style.font) / style.height
    across_scale = max(down_scale / style.width, (right - left) / _WIDEST)
    shear = style.slant * across_scale
    x, y = side / 2 + style.right, side / 2 + style.down
    start_x, start_y = (left + right) / 2 - across_scale * x - shear * y, (top + bottom) / 2 - down_scale * y
    # Drawn with 4 x 4 samples per pixel, whose mean is the pixel.
    matrix = (across_scale / 4, shear / 4, start_x, 0.0, down_scale / 4, start_y)
    fine = large.transform((4 * side, 4 * side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    cells = np.asarray(fine.resize((style.cells, style.cells), Image.Resampling.BOX), np.float64)
    noise = 1 + style.noise * rng.standard_normal(cells.shape)
    full = 255 * style.brightness / max(cells.max(), 1.0)
    coarse = Image.fromarray((cells * full * noise).round().clip(0, 255).astype(np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC).convert("RGB"))


def bank(count: int, seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Draw glyphs with random styles: half of them digits and half letters, each character equally often.

    Args:
        count: of glyphs.
        seed: glyph i is a function of the seed and i.

    Returns:
        (count, 32, 32, 3) uint8, and the name of each glyph, such as "digit two" or "capital letter a".
    """
    images, names = [], []
    for index in range(count):
        rng = np.random.default_rng(seed_for(seed, "glyph", index))
        characters = string.ascii_letters if index % 2 else string.digits
        character = characters[index // 2 % len(characters)]
        images.append(draw(character, random_style(rng), rng))
        names.append(NAMES[character])
    return np.stack(images), names


@cache
def _font(name: str) -> "FreeTypeFont":
    import matplotlib as mpl
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", f"{name}.ttf")), _FONT_SIZE)


@cache
def _capital_height(font: str) -> float:
    _, top, _, bottom = _font(font).getbbox("H")
    return bottom - top
