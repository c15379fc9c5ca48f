"""The classifiers that can be trained, one row each. Imports no library, so that the settings can list them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

#: Inputs of the last layer of every ResNet here.
FEATURES: Final = 512


#: The first layers of a ResNet, by the largest side of the images that they are for (MinimaxDiffusion's train_models):
#: small, a 3x3 convolution; middle, the same and a pooling; large, a 7x7 convolution and poolings.
Stem = Literal["small", "middle", "large"]
Norm = Literal["instance", "batch"]
#: The norm of teachers, as RDED trains them.
TEACHER_NORM: Final = "batch"
_STEMS: Final[tuple[tuple[int, Stem], ...]] = ((64, "small"), (128, "middle"))


@dataclass(frozen=True)
class Network:
    """One classifier.

    Args:
        name: as `evaluate.networks` and `teach.network` name it.
        build: `module:function` that builds it (see `models.classifiers.build_classifier`).
        smallest: the smallest side of an image in pixels, by norm: a map of one place has nothing to normalise within
            an image, so that a network with instance norm would not see the image.
        poolings: how many times a ConvNet halves the image, from which its operations follow; 0 for the other networks.
        stems: the stem of a ResNet by norm, where it does not follow from the size of the images.
        flops_per_pixel: by stem, operations of a forward pass of the other networks per pixel of the image, without the
            last layer, as counted by `python -m vlcp_ray.cost.count_flops`.
        published: torchvision's name of its weights for ImageNet-1K, if there are some.
    """

    name: str
    build: str
    smallest: Mapping[Norm, int]
    poolings: int = 0
    stems: Mapping[Norm, Stem] = field(default_factory=dict)
    flops_per_pixel: Mapping[Stem, float] = field(default_factory=dict)
    published: str = ""

    def stem(self, size: int, norm: Norm) -> Stem:
        """Return the stem of a ResNet for images of size x size pixels."""
        by_size: Stem = next((stem for limit, stem in _STEMS if size <= limit), "large")
        return self.stems.get(norm, by_size)

    def forward_flops(self, size: int, width: int, classes: int, norm: Norm) -> float:
        """Count the operations of a forward pass over an image of size x size pixels, `width` as in a ConvNet."""
        if not self.poolings:
            per_pixel = self.flops_per_pixel.get(self.stem(size, norm), math.nan)
            return per_pixel * size**2 + 2 * FEATURES * classes
        sides = [size // 2**level for level in range(self.poolings + 1)]
        channels = [3] + [width] * self.poolings
        convolutions = sum(2 * 9 * channels[n] * width * sides[n] ** 2 for n in range(self.poolings))
        return float(convolutions + 2 * width * sides[self.poolings] ** 2 * classes)


def _conv_net(depth: int) -> Network:
    smallest: dict[Norm, int] = dict.fromkeys(get_args(Norm), 2**depth)
    return Network(f"ConvNet-{depth}", "vlcp_ray.models.classifiers:conv_net", smallest, poolings=depth)


NETWORKS: Final[Mapping[str, Network]] = {
    network.name: network
    for network in (
        *map(_conv_net, (3, 4, 5, 6)),
        Network(
            "ResNetAP-10",
            "vlcp_ray.models.classifiers:resnet_ap_10",
            {"instance": 16, "batch": 8},
            flops_per_pixel={"small": 863616.0, "middle": 218496.0, "large": 72576.0},
        ),
        Network(
            "ResNet-18",
            "vlcp_ray.models.classifiers:resnet_18",
            {"instance": 9, "batch": 1},
            stems={"batch": "large"},  # torchvision's, as RDED trains it
            flops_per_pixel={"small": 1084800.0, "middle": 273792.0, "large": 72288.0},
            published="ResNet18_Weights.IMAGENET1K_V1",
        ),
        Network(
            "ResNet-18-modified",
            "vlcp_ray.models.classifiers:resnet_18",
            {"instance": 9, "batch": 1},
            stems={"instance": "small", "batch": "small"},
            flops_per_pixel={"small": 1084800.0},
        ),
    )
}


def check_input_size(names: Iterable[str], size: int, norm: Norm, field: str) -> None:
    """Refuse networks that cannot learn from images of size x size pixels.

    Args:
        field: the setting that names the networks.

    Raises:
        ValueError: names the network, the size that it needs, and the networks that fit.
    """
    fitting = [network.name for network in NETWORKS.values() if size >= network.smallest[norm]]
    for name in names:
        if name not in fitting:
            others = f", or set {field} to {' or '.join(fitting)}" if fitting else ""
            raise ValueError(
                f"input_size must be {NETWORKS[name].smallest[norm]} or more for {name} with {norm} norm, not {size}, "
                f"which leaves it nothing to learn from; raise input_size{others}"
            )
