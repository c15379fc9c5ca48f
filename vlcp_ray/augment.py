"""Knows the augmentations under which classifiers are trained: for whole batches at once, from explicit generators."""

import math
from typing import Final

import torch
from torch import Tensor, nn

# Random numbers are drawn on the CPU, so that they are the same whatever device the images are on.

CROP_SCALE: Final = (0.5, 1.0)
CROP_RATIO: Final = (3 / 4, 4 / 3)
JITTER: Final = 0.4
LIGHTING: Final = 0.1

_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)
_LUMA: Final = (0.299, 0.587, 0.114)
_EIGENVALUES: Final = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS: Final = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

_ATTEMPTS: Final = 10
_CONTRAST, _SATURATION, _OPERATIONS = 1, 2, 3  # 0 is brightness


def augment(pixels: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """A new view of every training image (METHOD 3.1): cropped, flipped if `flip`, its colours varied, normalised.

    Args:
        pixels: (n, 3, s, s) uint8 on any device.
        generator: a CPU generator.

    Returns (n, 3, s, s) float32 on the device of the pixels, normalised as `normalise` does.
    """
    count, size = len(pixels), pixels.shape[-1]
    boxes = crop_boxes(count, size, generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    views = crop(pixels.float().div_(255), boxes, mirrored)
    return vary_colours(views, generator)


def normalise(pixels: Tensor) -> Tensor:
    """(n, 3, s, s) uint8 as float32 with ImageNet's mean and deviation taken out: what a classifier is given."""
    mean, std = (pixels.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (_MEAN, _STD))
    return pixels.float().div_(255).sub_(mean).div_(std)


def crop_boxes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """The boxes of torchvision's RandomResizedCrop in images of size x size pixels.

    Ten candidates an image, the first that fits; the whole image where none does. Returns (count, 4) float32 on the
    CPU: left, top, width, height, whole numbers of pixels.
    """
    area = size**2 * torch.empty(count, _ATTEMPTS).uniform_(*CROP_SCALE, generator=generator)
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    ratio = torch.empty(count, _ATTEMPTS).uniform_(low, high, generator=generator).exp_()
    sides = torch.stack((area.mul(ratio), area.div(ratio)), -1).sqrt_().round_()  # (count, attempts, 2)
    fits = (sides <= size).all(-1)
    first = fits.int().argmax(1)
    chosen = torch.where(fits.any(1, keepdim=True), sides[torch.arange(count), first], torch.tensor(float(size)))
    corners = torch.rand(count, 2, generator=generator).mul_(size - chosen + 1).floor_()
    return torch.cat((torch.minimum(corners, size - chosen), chosen), 1)


def crop(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Cut a box out of every image and resize it to the image's size, bilinearly, with nothing from outside the box.

    Args:
        images: (n, 3, s, s) float32.
        boxes: (n, 4) float32: left, top, width, height, in pixels.
        mirrored: (n,) bool, which of the views are flipped horizontally.
    """
    size = images.shape[-1]
    centres = (torch.arange(size) + 0.5) / size
    corners, sides = boxes[:, :2, None], boxes[:, 2:, None]
    places = (corners + sides * centres - 0.5).clamp(corners, corners + sides - 1)  # (n, 2, s) pixel indices
    x = torch.where(mirrored[:, None], places[:, 0].flip(1), places[:, 0])
    x, y = (torch.stack((x, places[:, 1])) * (2 / (size - 1)) - 1).to(images.device)
    grid = torch.stack((x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)), -1)
    return nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def vary_colours(images: Tensor, generator: torch.Generator) -> Tensor:
    """Jitter brightness, contrast and saturation in an order drawn per image, add PCA lighting, normalise.

    As in misc/utils.py of MinimaxDiffusion: each of the three moves the image by U(-0.4, 0.4) of the way to black,
    to its mean grey or to its own greys, and nothing is clipped. So every image goes through one affine map of its
    colours, which is applied in a single pass.

    Args:
        images: (n, 3, s, s) float32 in [0, 1].
        generator: a CPU generator.
    """
    count, device = len(images), images.device
    shares = torch.empty(count, _OPERATIONS).uniform_(-JITTER, JITTER, generator=generator)
    order = torch.rand(count, _OPERATIONS, generator=generator).argsort(1)
    light = torch.randn(count, 3, generator=generator) * LIGHTING * torch.tensor(_EIGENVALUES)
    light = (light @ torch.tensor(_EIGENVECTORS).T).to(device)
    matrix, offset = _jitter(images.mean((2, 3)), shares.to(device), order.to(device))
    mean, std = torch.tensor(_MEAN, device=device), torch.tensor(_STD, device=device)
    offset = (offset + light - mean) / std
    return torch.baddbmm(offset[:, :, None], matrix / std[:, None], images.flatten(2)).view_as(images)


def _jitter(means: Tensor, shares: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The three jitters as x -> matrix x + offset, (n, 3, 3) and (n, 3), for images of these mean colours (n, 3)."""
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
        images: (n, c, s, s) on any device; left as they are.
        labels: (n,) on the same device.
        generator: a CPU generator.

    Returns the mixed images, the labels, the labels of the pasted images, and the share of the pixels that are the
    image's own: after clipping at the border, so it is not the share that was drawn.
    """
    size = images.shape[-1]
    top, bottom, left, right = cut_box(size, generator)
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, labels, labels[partner], 1 - (bottom - top) * (right - left) / size**2


def cut_box(size: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A random box as top, bottom, left, right; its centre is uniform, its area before clipping Beta(1, 1)."""
    share = float(torch.rand((), generator=generator))  # Beta(1, 1) is uniform
    half = int(size * math.sqrt(share)) // 2
    y, x = torch.randint(size, (2,), generator=generator).tolist()
    return max(0, y - half), min(size, y + half), max(0, x - half), min(size, x + half)
