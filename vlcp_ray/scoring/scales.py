"""Find the scale of the numbers of an image tensor, and turn them into 8-bit pixels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vlcp_ray.images import Pixels
from vlcp_ray.settings import ConfigError

Numbers = npt.NDArray[Any]
Channels = tuple[float, ...]

#: Means and standard deviations of RGB (of grey) by which released code normalises images in 0 to 1: those of MTT,
#: DATM and DC (`get_dataset`), torchvision's of ImageNet, also used for Tiny-ImageNet, and -1 to 1.
NORMALISATIONS: Final[dict[str, tuple[Channels, Channels]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar10-std247": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2861,), (0.3530,)),
    "half": ((0.5,), (0.5,)),
}
#: The scale of whitened images, as `--normalised` names it.
ZCA: Final = "zca"
_LEVELS: Final = 255
_ROUNDING: Final = 1e-3  # of 0 to 1: that of float16 and of resizing
_BOUND: Final = 2 / _LEVELS  # how near to 0 and 1 the ends of each channel are, where these show a normalisation
_WHOLE: Final = 0.1  # how near to a whole number of 255ths a value is
_MOSTLY: Final = 0.99  # the share of values that show a normalisation; a fifth of any values are so near
_DARK: Final = 0.1  # a set in 0 to 1 without a value above this is black: it was probably divided by 255 twice
_BRIGHT: Final = 64  # a set in 0 to 255 has a value above this
_MOST_OUTSIDE: Final = 0.25  # of the values, outside 0 to 1: more show another normalisation
_ROWS: Final = 256  # images whose numbers are in memory in float64


@dataclass(frozen=True, eq=False)
class Scale:
    """How the numbers of a tensor become values in 0 to 1: `number * std + mean`, after the inverse of a whitening.

    Args:
        name: in words.
        mean, std: of each channel, or one of all.
        inverse: of a ZCA whitening, (d, d) with d = channels x height x width, and its mean (d,); None: none.
    """

    name: str
    mean: Channels = (0.0,)
    std: Channels = (1.0,)
    inverse: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None

    def values(self, numbers: Numbers) -> npt.NDArray[np.float64]:
        """Return the values of numbers (n, c, h, w), in 0 to 1 where the scale is right."""
        found = numbers.astype(np.float64)
        if self.inverse is not None:
            matrix, mean = self.inverse
            return np.reshape(found.reshape(len(found), -1) @ matrix + mean, numbers.shape)
        values: npt.NDArray[np.float64] = found * _by_channel(self.std) + _by_channel(self.mean)
        return values

    def pixels(self, numbers: Numbers) -> tuple[Pixels, float]:
        """Return the 8-bit pixels (n, c, h, w) of numbers, and the share of values that had to be clipped to 0 to 1."""
        found, outside = np.empty(numbers.shape, np.uint8), 0
        for start in range(0, len(numbers), _ROWS):
            levels = np.rint(self.values(numbers[start : start + _ROWS]) * _LEVELS)
            outside += int(np.count_nonzero((levels < 0) | (levels > _LEVELS)))
            found[start : start + _ROWS] = levels.clip(0, _LEVELS)
        return found, outside / max(1, numbers.size)


def _by_channel(values: Channels) -> npt.NDArray[np.float64]:
    return np.array(values)[:, None, None]


def parse(text: str) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of a name of NORMALISATIONS, or of `MEAN/STD`, each one number or three.

    Raises:
        ConfigError: it is neither.
    """
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
        is_right = {len(mean), len(std)} <= {1, 3} and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    except ValueError:
        is_right = False
    if not is_right:
        names = ", ".join((*NORMALISATIONS, ZCA))
        raise ConfigError(
            f"--normalised {text}: give one of {names}, or MEAN/STD of values in 0 to 1, as 0.5,0.5,0.5/0.2,0.2,0.2"
        )
    return mean, std


def find_scale(numbers: Numbers, place: str) -> Scale:
    """Find the scale of an image tensor by its numbers.

    Args:
        numbers: (n, c, h, w), finite.
        place: the file, for the error.

    Raises:
        ConfigError: the numbers do not tell.
    """
    low, high = float(numbers.min()), float(numbers.max())
    shown = f"{place}: the numbers of the images run from {low:.4g} to {high:.4g}"
    choices = f"--normalised {', '.join((*NORMALISATIONS, ZCA))} or MEAN/STD"
    if numbers.dtype.kind in "ui":
        if not (low >= 0 and 1 < high <= _LEVELS):
            raise ConfigError(f"{shown}, whole numbers, and those of 8 bits run from 0 to 255; save them as uint8")
        return Scale(f"{numbers.dtype.name}, 0 to 255", std=(1 / _LEVELS,))
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        if high < _DARK:
            raise ConfigError(f"{shown}: black, on any scale that is usual; were they divided by 255 twice?")
        return Scale(f"{numbers.dtype.name}, 0 to 1")
    if low >= -_ROUNDING:
        if not _BRIGHT <= high <= _LEVELS * (1 + _ROUNDING):
            raise ConfigError(f"{shown}, which is neither 0 to 1 nor 0 to 255; save the images in one of these scales")
        return Scale(f"{numbers.dtype.name}, 0 to 255", std=(1 / _LEVELS,))
    found = list(_normalisations(numbers))
    if len(found) != 1:
        which = f"several fit ({', '.join(found)})" if found else "the file does not say by which mean and deviation"
        raise ConfigError(f"{shown}: they are normalised or whitened, and {which}; give {choices}")
    return Scale(f"{numbers.dtype.name}, normalised by {found[0]}", *NORMALISATIONS[found[0]])


def named_scale(numbers: Numbers, name: str, place: str) -> Scale:
    """Return the scale that the user names, once it is not refuted by the numbers.

    Args:
        numbers: (n, c, h, w), finite.
        name: as of `parse`.
        place: the file, for the error.

    Raises:
        ConfigError: the numbers cannot be normalised in this way.
    """
    mean, std = parse(name)
    check_signs(numbers, name, place)
    if len(mean) > numbers.shape[1] or len(std) > numbers.shape[1]:
        raise ConfigError(f"--normalised {name}: it is of three channels, and the images of {place} have one")
    others = [other for other in _normalisations(numbers) if NORMALISATIONS[other] != (mean, std)]
    if name in NORMALISATIONS and len(others) == 1:
        raise ConfigError(
            f"--normalised {name}: the numbers of {place} fit {others[0]}; leave --normalised out, or give {others[0]}"
        )
    scale = Scale(f"{numbers.dtype.name}, normalised by {name}", mean, std)
    check_outside(scale, numbers, name, place)
    return scale


def check_signs(numbers: Numbers, name: str, place: str) -> None:
    """Refuse to undo a normalisation of numbers that have none.

    Raises:
        ConfigError: no number is below 0.
    """
    if numbers.dtype.kind in "ui" or numbers.min() >= 0:
        raise ConfigError(
            f"--normalised {name}: no number of the images of {place} is below 0, so that they are not normalised; "
            "leave it out"
        )


def check_outside(scale: Scale, numbers: Numbers, name: str, place: str) -> None:
    """Refuse a normalisation that leaves many values outside 0 to 1.

    Raises:
        ConfigError: more than a quarter are.
    """
    outside = scale.pixels(numbers)[1]
    if outside > _MOST_OUTSIDE:
        raise ConfigError(
            f"--normalised {name}: {outside:.0%} of the values of {place} would lie outside 0 to 1; was the set made "
            "with another mean and deviation?"
        )


def _normalisations(numbers: Numbers) -> Iterator[str]:
    """Yield the names of the normalisations that the numbers show.

    Either nearly all values are whole numbers of 255ths, as those of normalised files are, or the values of every
    channel end at 0 and at 1, as those of clipped ones do.
    """
    for name, (mean, std) in NORMALISATIONS.items():
        if len(mean) > numbers.shape[1]:
            continue
        scale, whole = Scale("", mean, std), 0
        lows, highs = np.full(numbers.shape[1], np.inf), np.full(numbers.shape[1], -np.inf)
        for start in range(0, len(numbers), _ROWS):
            values = scale.values(numbers[start : start + _ROWS])
            lows, highs = np.minimum(lows, values.min((0, 2, 3))), np.maximum(highs, values.max((0, 2, 3)))
            levels = values * _LEVELS
            whole += int(np.count_nonzero(np.abs(levels - np.rint(levels)) < _WHOLE))
        if lows.min() < -_BOUND or highs.max() > 1 + _BOUND:
            continue
        ends_at_bounds = bool((lows < _BOUND).all() and (highs > 1 - _BOUND).all())
        if whole >= _MOSTLY * numbers.size or ends_at_bounds:
            yield name
