"""Augmentations of training images: whole batches at once, with explicit random generators."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

# Random numbers are sampled on the CPU, so that they are the same on every device.

#: Width to height of torchvision's RandomResizedCrop.
CROP_RATIO: Final = (3 / 4, 4 / 3)

_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)
_LUMA: Final = (0.299, 0.587, 0.114)
_EIGENVALUES: Final = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS: Final = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

_ATTEMPTS: Final = 10
_CONTRAST, _SATURATION, _OPERATIONS = 1, 2, 3  # 0 is brightness


def augment(
    pixels: Tensor,
    generator: torch.Generator,
    flip: bool,
    scale: tuple[float, float],
    jitter: float,
    lighting: float,
) -> Tensor:
    """Make a new view of every training image: crop, flip if `flip`, jitter colours, normalise.

    Args:
        pixels: (n, 3, s, s) uint8 on any device.
        generator: a CPU generator.
        flip: whether half of the views are mirrored.
        scale: the smallest and the largest share of the image's area that a crop covers.
        jitter, lighting: as in `jitter_colours`.

    Returns:
        (n, 3, s, s) float32 on the device of the pixels, normalised as by `normalise`.
    """
    return jitter_colours(random_crop(pixels, generator, flip, scale), generator, jitter, lighting)


def augment_without_jitter(
    pixels: Tensor, generator: torch.Generator, flip: bool, scale: tuple[float, float], factor: int = 1
) -> Tensor:
    """Make a new view of every training image: shuffle patches, crop, flip if `flip`, normalise.

    Args:
        pixels: (n, 3, s, s) uint8 on any device; `factor` divides s.
        generator: a CPU generator.
        flip: whether half of the views are mirrored.
        scale: the smallest and the largest share of the image's area that a crop covers.
        factor: patches per side; 1: no shuffling.

    Returns:
        (n, 3, s, s) float32 on the device of the pixels, normalised as by `normalise`.
    """
    if factor > 1:
        pixels = shuffle_patches(pixels, factor, generator)
    return standardise(random_crop(pixels, generator, flip, scale))


def random_crop(pixels: Tensor, generator: torch.Generator, flip: bool, scale: tuple[float, float]) -> Tensor:
    """Apply torchvision's RandomResizedCrop to the image's own size, and a flip with probability 1/2 if `flip`.

    Args:
        pixels: (n, 3, s, s) uint8 on any device.
        generator: a CPU generator.
        flip: whether half of the views are mirrored.
        scale: the smallest and the largest share of the image's area that a crop covers.

    Returns:
        (n, 3, s, s) float32 in [0, 1].
    """
    count, size = len(pixels), pixels.shape[-1]
    boxes = crop_boxes(count, size, generator, scale)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    return crop(pixels.float().div_(255), boxes, mirrored)


def random_shift(pixels: Tensor, generator: torch.Generator, flip: bool, padding: int) -> Tensor:
    """Apply torchvision's RandomCrop with black padding, a flip with probability 1/2 if `flip`, and normalisation.

    Args:
        pixels: (n, 3, s, s) uint8 on any device.
        generator: a CPU generator.
        flip: whether half of the views are mirrored.
        padding: black pixels on each side, and so the largest shift in pixels.

    Returns:
        (n, 3, s, s) float32, normalised as by `normalise`.
    """
    count, size = len(pixels), pixels.shape[-1]
    corners = torch.randint(2 * padding + 1, (count, 2), generator=generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    across = torch.arange(size).expand(count, size)
    x = torch.where(mirrored[:, None], across.flip(1), across) + corners[:, :1]
    y = across + corners[:, 1:]
    return normalise(take_rows_and_columns(nn.functional.pad(pixels, (padding,) * 4), y, x))


def shuffle_patches(images: Tensor, factor: int, generator: torch.Generator) -> Tensor:
    """Cut every image into factor x factor patches and shuffle their columns, then their rows.

    As ShufflePatches of RDED: all rows of an image have their columns in the same new order, so there are (factor!)^2
    arrangements, one of which is sampled for each image.

    Args:
        images: (n, c, s, s) of any type, on any device.
        factor: patches per side.
        generator: a CPU generator.

    Raises:
        ValueError: `factor` does not divide s.
    """
    count, size = len(images), images.shape[-1]
    if size % factor:
        raise ValueError(f"images of {size} pixels cannot be cut into {factor} patches per side: set another factor")
    x, y = torch.rand(2, count, factor, generator=generator).argsort(2).mul_(size // factor)
    within = torch.arange(size // factor)
    return take_rows_and_columns(images, *((order[:, :, None] + within).flatten(1) for order in (y, x)))


def take_rows_and_columns(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Take the pixels of every image at its rows y and columns x: (n, c, h, w), (n, r), (n, s) -> (n, c, r, s)."""
    y, x = y.to(images.device), x.to(images.device)
    image, channel = (torch.arange(length, device=images.device) for length in images.shape[:2])
    return images[image[:, None, None, None], channel[None, :, None, None], y[:, None, :, None], x[:, None, None, :]]


def normalise(pixels: Tensor) -> Tensor:
    """Convert (n, 3, s, s) uint8 to float32, standardised by ImageNet's mean and std: the input of a classifier."""
    return standardise(pixels.float().div_(255))


def standardise(images: Tensor) -> Tensor:
    """Standardise (n, 3, s, s) float32 in [0, 1] by ImageNet's mean and std, in place."""
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
    return images.sub_(mean).div_(std)


def crop_boxes(count: int, size: int, generator: torch.Generator, scale: tuple[float, float]) -> Tensor:
    """Sample the boxes of torchvision's RandomResizedCrop in images of size x size pixels.

    Each box is the first of ten candidates that fits into the image, or the whole image if none does.

    Args:
        count: number of boxes.
        size: height and width of the images in pixels.
        generator: a CPU generator.
        scale: the smallest and the largest share of the image's area that a box covers.

    Returns:
        (count, 4) float32 on the CPU: left, top, width, height, in whole pixels.
    """
    area = size**2 * torch.empty(count, _ATTEMPTS).uniform_(*scale, generator=generator)
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    ratio = torch.empty(count, _ATTEMPTS).uniform_(low, high, generator=generator).exp_()
    sides = torch.stack((area.mul(ratio), area.div(ratio)), -1).sqrt_().round_()  # (count, attempts, 2)
    fits = (sides <= size).all(-1)
    first = fits.int().argmax(1)
    box_sides = torch.where(fits.any(1, keepdim=True), sides[torch.arange(count), first], torch.tensor(float(size)))
    corners = torch.rand(count, 2, generator=generator).mul_(size - box_sides + 1).floor_()
    return torch.cat((torch.minimum(corners, size - box_sides), box_sides), 1)


def crop(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Cut a box out of every image and resize it bilinearly to the image's size, from the pixels of the box alone.

    Args:
        images: (n, 3, s, s) float32.
        boxes: (n, 4) float32: left, top, width, height, in pixels.
        mirrored: (n,) bool: whether a view is flipped horizontally.
    """
    size = images.shape[-1]
    centres = (torch.arange(size) + 0.5) / size
    corners, sides = boxes[:, :2, None], boxes[:, 2:, None]
    positions = (corners + sides * centres - 0.5).clamp(corners, corners + sides - 1)  # (n, 2, s) pixel indices
    x = torch.where(mirrored[:, None], positions[:, 0].flip(1), positions[:, 0])
    x, y = (torch.stack((x, positions[:, 1])) * (2 / (size - 1)) - 1).to(images.device)
    grid = torch.stack((x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)), -1)
    return nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def crop_together(images: Tensor, box: Sequence[float], mirrored: bool = False, size: int | None = None) -> Tensor:
    """Cut the same box out of all images, as `crop` does; differentiable, and reproducible on a GPU as well.

    Args:
        images: (n, c, s, s) float32.
        box: left, top, width, height, in pixels.
        mirrored: whether the views are flipped horizontally.
        size: height and width of the views in pixels; None: s.
    """
    # Two products with matrices: the gradient of grid_sample depends on the order in which a GPU adds it up.
    old, (left, top, width, height) = images.shape[-1], box
    across, down = (_interpolation(*side, old, size or old) for side in ((left, width), (top, height)))
    across = across.flip(0) if mirrored else across
    return down.to(images.device) @ images @ across.T.to(images.device)


def _interpolation(start: float, length: float, old: int, new: int) -> Tensor:
    """Return the (new, old) weights of old pixels, by new pixel, of a linear resize of a range to `new` pixels."""
    positions = (start + length * (torch.arange(new) + 0.5) / new - 0.5).clamp(start, start + length - 1)
    return (1 - (positions[:, None] - torch.arange(old)).abs()).clamp(min=0)


def jitter_colours(images: Tensor, generator: torch.Generator, jitter: float, lighting: float) -> Tensor:
    """Jitter brightness, contrast and saturation in an order sampled per image, add PCA lighting, normalise.

    As in misc/utils.py of MinimaxDiffusion: each of the three moves the image by U(-jitter, jitter) of the way to
    black, to its mean grey or to its own greys, and nothing is clipped. Together they are one affine map of its
    colours, which is applied in a single pass.

    Args:
        images: (n, 3, s, s) float32 in [0, 1].
        generator: a CPU generator.
        jitter: largest share, from 0 to 1.
        lighting: standard deviation of the PCA lighting.
    """
    count, device = len(images), images.device
    shares = torch.empty(count, _OPERATIONS).uniform_(-jitter, jitter, generator=generator)
    order = torch.rand(count, _OPERATIONS, generator=generator).argsort(1)
    light = torch.randn(count, 3, generator=generator) * lighting * torch.tensor(_EIGENVALUES)
    light = (light @ torch.tensor(_EIGENVECTORS).T).to(device)
    matrix, offset = _jitter_maps(images.mean((2, 3)), shares.to(device), order.to(device))
    mean, std = torch.tensor(_MEAN, device=device), torch.tensor(_STD, device=device)
    offset = (offset + light - mean) / std
    return torch.baddbmm(offset[:, :, None], matrix / std[:, None], images.flatten(2)).view_as(images)


def _jitter_maps(means: Tensor, shares: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the three jitters as x -> matrix x + offset, (n, 3, 3) and (n, 3), from mean colours (n, 3)."""
    eye, luma = torch.eye(3, device=means.device), means.new_tensor(_LUMA)
    matrix, offset = eye.expand(len(means), 3, 3), torch.zeros_like(means)
    for kind in order.unbind(1):
        share = shares.gather(1, kind[:, None])  # (n, 1)
        to_grey = share * (kind == _SATURATION)[:, None]
        step = (1 - share)[:, :, None] * eye + to_grey[:, :, None] * luma
        current = (matrix @ means[:, :, None]).squeeze(2) + offset
        shift = share * (kind == _CONTRAST)[:, None] * (current @ luma)[:, None]
        matrix, offset = step @ matrix, (step @ offset[:, :, None]).squeeze(2) + shift
    return matrix, offset


def cutmix(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    """Paste one box, the same for the whole batch, from a shuffled batch (CutMix, beta 1).

    Args:
        images: (n, c, s, s) on any device; not changed.
        labels: (n,) on the same device.
        generator: a CPU generator.

    Returns:
        The mixed images, their labels, the labels of the pasted images, and the share of the pixels that are the
        image's own, computed after the box is clipped at the border.
    """
    size = images.shape[-1]
    top, bottom, left, right = cut_box(size, generator)
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, labels, labels[partner], 1 - (bottom - top) * (right - left) / size**2


def cut_box(size: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Sample a box as top, bottom, left, right; its centre is uniform, its area before clipping Beta(1, 1)."""
    share = float(torch.rand((), generator=generator))  # Beta(1, 1) is uniform
    half = int(size * math.sqrt(share)) // 2
    y, x = torch.randint(size, (2,), generator=generator).tolist()
    return max(0, y - half), min(size, y + half), max(0, x - half), min(size, x + half)
