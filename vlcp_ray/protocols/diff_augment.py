"""DiffAug: the differentiable augmentation under which methods compare gradients of real and synthetic images."""

from typing import Final

import torch
from torch import Tensor, nn

from vlcp_ray.protocols.augment import take_rows_and_columns

# As in misc/augment.py of snu-mllab/Efficient-Dataset-Condensation, strategy color_crop_cutout. Images are normalised,
# so that a zero is the mean colour.
BRIGHTNESS: Final = 1.0  # width of the range that is added
SATURATION: Final = 2.0  # largest factor of the distance to a pixel's grey
CONTRAST: Final = 0.5  # smallest factor of the distance to an image's mean; the largest is 1 more
CROP: Final = 0.125  # largest shift, as a share of the side
CUTOUT: Final = 0.5  # side of the square that is set to zero, as a share of the side


def augment_together(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change all images in the same way: brightness, saturation, contrast, a shift, a square that is cut out.

    Args:
        images: (n, 3, s, s) float32, normalised.
        generator: a CPU generator.
    """
    size = images.shape[-1]
    colours = torch.rand(3, 1, 1, 1, 1, generator=generator).to(images.device)
    images = _recolour(images, colours.unbind())
    most = int(size * CROP + 0.5)
    down, right = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    images = nn.functional.pad(images, (most,) * 4)[:, :, down : down + size, right : right + size]
    side = int(size * CUTOUT + 0.5)
    y, x = torch.randint(size + 1 - side % 2, (2,), generator=generator).tolist()
    mask = torch.ones(size, size)
    mask[max(0, y - side // 2) : y - side // 2 + side, max(0, x - side // 2) : x - side // 2 + side] = 0
    return images * mask.to(images.device)


def augment_each(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change each image in its own way: brightness, saturation, contrast and a shift.

    Args:
        images, generator: as in `augment_together`.
    """
    count, size = len(images), images.shape[-1]
    colours = torch.rand(3, count, 1, 1, 1, generator=generator).to(images.device)
    images = _recolour(images, colours.unbind())
    most = int(size * CROP + 0.5)
    corners = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
    y, x = corners + torch.arange(size)
    return take_rows_and_columns(nn.functional.pad(images, (most,) * 4), y, x)


def _recolour(images: Tensor, random: tuple[Tensor, ...]) -> Tensor:
    """Apply brightness, saturation and contrast, by a random number of [0, 1) for each, (n or 1, 1, 1, 1)."""
    brightness, saturation, contrast = random
    images = images + (brightness - 0.5) * BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (saturation * SATURATION) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + CONTRAST) + mean
