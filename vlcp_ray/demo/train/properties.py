"""Seven visual properties of a digit: measured on its pixels, put into a caption, and read from a caption."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOOP_THRESHOLD = 0.4
LOOP_MIN_PIXELS = 3


@dataclass(frozen=True)
class Property:
    """One property.

    Args:
        words: in ascending order of the measure.
        edges: measures that separate the words; a measure equal to an edge has the upper word. They are the rounded
            terciles (for `colour` the median) of the 1,297 train digits; loops are counted.
        phrases: synonyms that express each word.
    """

    words: tuple[str, ...]
    edges: tuple[float, ...]
    phrases: Mapping[str, tuple[str, ...]]

    def word(self, measure: float) -> str:
        """Return the word of a measure."""
        return self.words[sum(measure >= edge for edge in self.edges)]


PROPERTIES: Mapping[str, Property] = {
    "stroke": Property(
        ("thin", "medium", "thick"),
        (7.03, 7.75),
        {
            "thin": ("thin", "slender"),
            "medium": ("medium", "regular"),
            "thick": ("thick", "heavy"),
        },
    ),
    "colour": Property(
        ("pale", "bright"),
        (0.69,),
        {"pale": ("pale grey", "soft grey"), "bright": ("bright white", "brilliant white")},
    ),
    "slant": Property(
        ("left", "upright", "right"),
        (-0.09, 0.01),
        {
            "left": ("leans to the left", "tilts to the left"),
            "upright": ("stands upright", "is vertical"),
            "right": ("leans to the right", "tilts to the right"),
        },
    ),
    "width": Property(
        ("narrow", "moderate", "wide"),
        (4.96, 5.47),
        {
            "narrow": ("narrow", "compressed"),
            "moderate": ("of moderate width", "of average width"),
            "wide": ("wide", "broad"),
        },
    ),
    "balance": Property(
        ("top", "even", "bottom"),
        (-0.67, 0.5),
        {
            "top": ("top-heavy", "weighted towards the top"),
            "even": ("evenly balanced", "well balanced"),
            "bottom": ("bottom-heavy", "weighted towards the bottom"),
        },
    ),
    "position": Property(
        ("left", "centre", "right"),
        (-0.26, 0.71),
        {
            "left": ("sits left of the centre", "is placed left of the middle"),
            "centre": ("sits in the centre", "is placed in the middle"),
            "right": ("sits right of the centre", "is placed right of the middle"),
        },
    ),
    "loops": Property(
        ("none", "one", "two"),
        (0.5, 1.5),
        {
            "none": ("no closed loop", "no enclosed hole"),
            "one": ("one closed loop", "a single enclosed hole"),
            "two": ("two closed loops", "two enclosed holes"),
        },
    ),
}

TEMPLATES = (
    (
        "The {name} in the image is drawn with a {stroke}, {colour} stroke and {slant}. "
        "Its shape is {width} and {balance}, it {position}, and it has {loops}."
    ),
    (
        "The image shows a {name} with {loops}, written in a {stroke} {colour} line. It {slant}, {position}, "
        "and its shape is {width} and {balance}."
    ),
    (
        "In the image, the {name} {slant} and has {loops}. Its form is {width}, {balance}, and it {position}. "
        "The stroke is {stroke} and {colour}."
    ),
    "The {name} is {width} and {balance}, with {loops}. It {slant} and {position}; the line is {stroke} and {colour}.",
)


def measure(image: "NDArray[np.uint8]") -> dict[str, float]:
    """Measure the seven properties of a 32 x 32 x 3 (or 32 x 32) uint8 image of a light digit on a dark background.

    stroke: twice the ink over its total variation, in pixels; colour: mean brightness of the inked pixels, 0 to 1;
    slant: shear of the ink's moments, positive to the right; width: standard deviation of the ink in x, in pixels;
    balance, position: offset of the ink's centre downwards and to the right, in pixels; loops: enclosed dark areas.
    All measures of an image without ink are 0.

    Raises:
        ValueError: an image of another size.
    """
    import numpy as np

    if image.shape[:2] != (32, 32):
        raise ValueError(f"the properties are measured on 32 x 32 images, not on {image.shape}: resize the image first")
    ink = (image if image.ndim == 2 else image.mean(axis=2)).astype(np.float64) / 255
    mass = float(ink.sum())
    if mass < 1:
        return dict.fromkeys(PROPERTIES, 0.0)
    rows, columns = np.mgrid[:32, :32] - 15.5
    x, y = float((ink * columns).sum() / mass), float((ink * rows).sum() / mass)
    variance_x = float((ink * (columns - x) ** 2).sum() / mass)
    variance_y = float((ink * (rows - y) ** 2).sum() / mass)
    covariance = float((ink * (columns - x) * (rows - y)).sum() / mass)
    variation = float(np.hypot(*np.gradient(ink)).sum())
    bright = ink[ink > 0.3]
    return {
        "stroke": 2 * mass / max(variation, 1e-6),
        "colour": float(bright.mean()) if bright.size else 0.0,
        "slant": -covariance / max(variance_y, 1e-6),
        "width": variance_x**0.5,
        "balance": y,
        "position": x,
        "loops": _loops(ink),
    }


def _loops(ink: "NDArray[np.float64]") -> float:
    import numpy as np
    from scipy import ndimage

    # A border of background joins all background outside the digit into one area, which is not a loop.
    areas, _ = ndimage.label(np.pad(ink <= LOOP_THRESHOLD, 1, constant_values=True))
    sizes = np.bincount(areas.ravel())[1:]
    return float((sizes >= LOOP_MIN_PIXELS).sum() - 1)


def words(image: "NDArray[np.uint8]") -> dict[str, str]:
    """Return the word of each property of a 32 x 32 image."""
    measures = measure(image)
    return {name: kind.word(measures[name]) for name, kind in PROPERTIES.items()}


def write_caption(image: "NDArray[np.uint8]", class_name: str, rng: random.Random) -> str:
    """Write a caption of a 32 x 32 image in LLaVA's style, at most 50 tokens; `rng` chooses sentence and synonyms."""
    return phrase(words(image), class_name, rng)


def phrase(words: Mapping[str, str], class_name: str, rng: random.Random) -> str:
    """Write a caption that states the given word of each property."""
    template = rng.choice(TEMPLATES)
    phrases = {name: rng.choice(kind.phrases[words[name]]) for name, kind in PROPERTIES.items()}
    return template.format(name=class_name, **phrases)


def read(caption: str) -> dict[str, str]:
    """Read the words that a caption states (inverse of `write_caption`), without properties that it leaves out."""
    words = {}
    for name, kind in PROPERTIES.items():
        for word, phrases in kind.phrases.items():
            if any(_states(caption, phrase) for phrase in phrases):
                words[name] = word
    return words


def _states(caption: str, phrase: str) -> bool:
    # "heavy" is a stroke, "top-heavy" a balance: a phrase counts between spaces and punctuation only.
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", caption) is not None
