"""The ZCA whitening of a train split, and its inverse, as `kornia.enhance.ZCAWhitening(eps=0.1)` makes them.

MTT, DATM and DD-Ranking whiten with it: images in 0 to 1, each as a vector of channels x height x width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Final

import numpy as np
import numpy.typing as npt

from vlcp_ray.images import Pixels

#: Added to the eigenvalues, so that directions without variance are not made loud.
EPS: Final = 0.1
#: Side in pixels of the largest images: those of 64 are vectors of 12,288, whose matrix of 1.2 GB takes minutes.
MAX_SIDE: Final = 64
_ROWS: Final = 1024  # images that are vectors of float64 at a time

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Whitening:
    """A whitening of vectors of length d: `(x - mean) @ matrix`, and back `z @ inverse + mean`."""

    mean: Floats
    matrix: Floats
    inverse: Floats


def fit(pixels: Pixels, eps: float = EPS) -> Whitening:
    """Compute the ZCA whitening of images.

    Args:
        pixels: (n, c, h, w), at least two images; they are divided by 255.
        eps: added to the eigenvalues of the covariance, which is divided by n - 1.
    """
    count = len(pixels)
    mean = _sum(pixels, lambda rows: rows.sum(0)) / count
    covariance = _sum(pixels, lambda rows: (rows - mean).T @ (rows - mean)) / (count - 1)
    values, vectors = np.linalg.eigh(covariance)
    deviations = np.sqrt(values.clip(min=0) + eps)
    return Whitening(mean, vectors / deviations @ vectors.T, vectors * deviations @ vectors.T)


def _sum(pixels: Pixels, part: Callable[[Floats], Floats]) -> Floats:
    """Add up a function of all images, some vectors at a time."""
    starts = range(0, len(pixels), _ROWS)
    return reduce(np.add, (part(pixels[start : start + _ROWS].reshape(-1, pixels[0].size) / 255.0) for start in starts))
