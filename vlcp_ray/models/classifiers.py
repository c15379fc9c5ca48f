"""Knows the classifiers that judge a distilled set: how each is built, and where its first weights come from."""

from typing import Final

import torch
from torch import Tensor, nn

from vlcp_ray.config import Network

_DEPTHS: Final[dict[Network, int]] = {"ConvNet-3": 3, "ConvNet-4": 4, "ConvNet-5": 5, "ConvNet-6": 6}


def build_classifier(name: Network, *, num_classes: int, input_size: int, width: int, seed: int) -> nn.Module:
    """A ConvNet-D with torch's default initial weights: (n, 3, input_size, input_size) -> (n, num_classes) logits.

    D blocks of [3x3 convolution of `width` channels, instance norm, ReLU, average pool 2] and a linear head
    (METHOD 3.1, train_models/convnet.py of MinimaxDiffusion). The weights depend on `seed` alone; the global random
    state is neither read nor changed.

    Raises:
        ValueError: the D poolings leave nothing of `input_size` pixels.
    """
    depth = _DEPTHS[name]
    side = input_size // 2**depth
    if side == 0:
        raise ValueError(
            f"evaluate.input_size: {name} halves the image {depth} times, so it needs {2**depth} pixels or more, "
            f"not {input_size}; raise input_size or take a shallower network"
        )
    with torch.random.fork_rng(devices=[]):  # no devices: layers are made on the CPU
        torch.default_generator.manual_seed(seed)
        blocks = [_block(width if level else 3, width) for level in range(depth)]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * side**2, num_classes))


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1),
        nn.GroupNorm(width, width),
        nn.ReLU(inplace=True),
        AveragePool2(),
    )


class AveragePool2(nn.Module):
    """Average pooling of 2 x 2 pixels; an odd last row or column is left out, as by `nn.AvgPool2d(2)`."""

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h // 2, w // 2)."""
        if images.is_cuda:
            return nn.functional.avg_pool2d(images, 2)
        # torch's own pooling is not vectorised on a CPU: 12 ms forward, 22 ms with backward for (50, 64, 32, 32)
        # on one core, and 2.5 ms and 10 ms this way.
        height, width = images.shape[2] // 2, images.shape[3] // 2
        rows = images[:, :, : 2 * height, : 2 * width].reshape(*images.shape[:2], height, 2, 2 * width)
        upper, lower = rows.unbind(3)
        left, right = (upper + lower).reshape(*images.shape[:2], height, width, 2).unbind(4)
        return (left + right).mul(0.25)
