"""Augment the 1,297 train digits with slightly shifted, sheared and scaled variants, for the tiny LLaVA."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlcp_ray.demo import digits

if TYPE_CHECKING:
    import torch


def bank(copies: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the train digits followed by `copies` augmented copies of all of them.

    Returns:
        (1297 * (1 + copies), 32, 32, 3) uint8, and their labels.
    """
    import torch

    images, labels = digits.load("train")
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    varied = [vary(pixels, generator).round().clamp(0, 255).byte() for _ in range(copies)]
    augmented = torch.cat([torch.from_numpy(images).permute(0, 3, 1, 2), *varied]).permute(0, 2, 3, 1)
    return augmented.contiguous().numpy(), np.tile(labels, copies + 1)


def vary(images: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Apply a random affine map and a random contrast to each image (n, 3, 32, 32) in 0..255.

    Shifts up to 2 pixels, scales of each axis up to 10 %, shear up to 0.2, brightness to the power of 0.74 to 1.35.
    """
    import torch

    count = images.shape[0]

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = 1 + uniform(0.1)
    maps[:, 1, 1] = 1 + uniform(0.1)
    maps[:, 0, 1] = uniform(0.2)
    maps[:, 0, 2] = uniform(2 / 16)
    maps[:, 1, 2] = uniform(2 / 16)
    grid = torch.nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(images, grid, mode="bicubic", align_corners=False).clamp(0, 255)
    power = torch.exp(uniform(0.3))[:, None, None, None]
    return (moved / 255) ** power * 255
