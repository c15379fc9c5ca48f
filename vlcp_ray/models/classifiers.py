"""Build the classifiers that are trained on distilled sets; their initial weights depend on the seed only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pkgutil import resolve_name

import torch
from torch import Tensor, nn

from vlcp_ray.models.networks import NETWORKS, Norm, Stem, check_input_size

NormLayer = Callable[[int], nn.Module]


def build_classifier(
    name: str, *, num_classes: int, input_size: int, width: int, seed: int, norm: Norm = "instance"
) -> nn.Module:
    """Build a classifier with its initial weights: (n, 3, input_size, input_size) -> (n, num_classes) logits.

    ConvNet-D: D blocks of [3x3 convolution of `width` channels, norm, ReLU, average pool 2] and a linear head.
    ResNet-18: torchvision's with batch norm; with instance norm its stem follows from the size of the images, as in
    train_models of MinimaxDiffusion. ResNet-18-modified: the same with the stem for small images. ResNetAP-10: one
    block per stage, average pooling in place of strides, and such a stem. Convolutions of ResNets begin with normal
    values of the standard deviation sqrt(2 / (k k c_out)); those of ConvNets, and with batch norm the stem of
    ResNet-18-modified, as torch's default.
    Other names are torchvision's: these networks have its layers, norms and initial weights under every protocol.
    The weights depend on `seed` only; the global random state is neither read nor changed.

    Args:
        name: one of NETWORKS.
        num_classes: number of logits.
        input_size: side of the images in pixels.
        width: channels of a ConvNet.
        seed: of the initial weights.
        norm: `instance` normalises per image and channel (train_models of MinimaxDiffusion), `batch` is
            `nn.BatchNorm2d`; a network of torchvision has its own.

    Raises:
        ValueError: the network does not take `input_size`.
    """
    network, layer = NETWORKS[name], _instance_norm if norm == "instance" else nn.BatchNorm2d
    check_input_size([name], input_size, norm, "the network")
    with global_seed(seed, "cpu"):  # layers are made on the CPU
        stem = network.stem(input_size, norm)
        built: nn.Module = resolve_name(network.build)(name, num_classes, input_size, width, layer, stem)
        return built


@contextmanager
def global_seed(seed: int, device: str) -> Iterator[None]:
    """Seed torch's global random state, which dropout and stochastic depth sample from, and restore it at the end.

    Args:
        device: torch device of the network.
    """
    is_cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if is_cuda else []):
        torch.default_generator.manual_seed(seed)
        if is_cuda:
            torch.cuda.manual_seed(seed)
        yield


class InBfloat16(nn.Module):
    """Compute a network in bfloat16, with channels last, and return its logits in float32; its weights stay float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (n, classes) of images (n, 3, s, s) float32."""
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return logits.float()


def head_of(network: nn.Module) -> nn.Linear:
    """Return the last linear layer of a network of `build_classifier`; its input is the penultimate features."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def resnet_18(name: str, num_classes: int, input_size: int, width: int, norm: NormLayer, stem: Stem) -> nn.Module:
    """Build torchvision's ResNet-18, with the stem for the size of the images."""
    from torchvision.models import resnet18  # here, because it takes a second to load and the ConvNets do not need it

    network: nn.Module = resnet18(num_classes=num_classes, norm_layer=norm)
    if stem != "large":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    if stem == "small":
        network.maxpool = nn.Identity()
    if norm is _instance_norm:
        _start_he_normal(network)
    return network


def of_torchvision(name: str, num_classes: int, input_size: int, width: int, norm: NormLayer, stem: Stem) -> nn.Module:
    """Build a classifier of torchvision by its name there; width, norm and stem are its own."""
    from torchvision.models import get_model

    sized = NETWORKS[name].multiple > 1  # built for one size of images
    side = {"input_size": (input_size, input_size)} if name.startswith("maxvit") else {"image_size": input_size}
    network: nn.Module = get_model(name, weights=None, num_classes=num_classes, **(side if sized else {}))
    return network


def conv_net(name: str, num_classes: int, input_size: int, width: int, norm: NormLayer, stem: Stem) -> nn.Module:
    """Build a ConvNet with one block for each of its poolings; it has no stem."""
    depth = NETWORKS[name].poolings
    blocks = [_block(width if level else 3, width, norm) for level in range(depth)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * (input_size // 2**depth) ** 2, num_classes))


def resnet_ap_10(name: str, num_classes: int, input_size: int, width: int, norm: NormLayer, stem: Stem) -> nn.Module:
    """Build ResNetAP-10."""
    side, poolings = {"small": (3, 0), "middle": (3, 1), "large": (7, 2)}[stem]
    network = nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=side, padding=side // 2, bias=False),
        norm(64),
        nn.ReLU(inplace=True),
        *(AveragePool2() for _ in range(poolings)),
        *(PooledBlock(max(64, width // 2), width, norm) for width in (64, 128, 256, 512)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )
    _start_he_normal(network)
    return network


def _start_he_normal(network: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, sqrt(2 / (k k c_out))); norms and linear layers stay."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _instance_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels, channels)


def _block(channels: int, width: int, norm: NormLayer) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1),
        norm(width),
        nn.ReLU(inplace=True),
        AveragePool2(),
    )


class PooledBlock(nn.Module):
    """A residual block of two 3x3 convolutions; if it widens, average pooling halves the image after the first."""

    def __init__(self, channels: int, width: int, norm: NormLayer) -> None:
        super().__init__()
        widens = channels != width
        self.path = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            AveragePool2() if widens else nn.Identity(),
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
            norm(width),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=1, bias=False), AveragePool2(), norm(width)
        )
        if not widens:
            self.shortcut = nn.Sequential()

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, width, h, w), with half of h and w if the block widens."""
        return nn.functional.relu(self.path(images) + self.shortcut(images))


class AveragePool2(nn.Module):
    """Average pooling of 2 x 2 pixels; an odd last row or column is dropped, as `nn.AvgPool2d(2)` does."""

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
