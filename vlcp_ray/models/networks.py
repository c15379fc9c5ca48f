"""The classifiers that can be trained, one row each. Imports no library, so that the settings can list them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_FEATURES: Final = 512  # inputs of the last layer of every ResNet here


@dataclass(frozen=True)
class Network:
    """One classifier.

    Args:
        name: as `evaluate.networks` and `teach.network` name it.
        build: `module:function` that builds it (see `models.classifiers.build_classifier`).
        poolings: how many times a ConvNet halves the image, from which its operations follow; 0 for the other networks,
            which take any image size.
        flops_per_pixel: operations of a forward pass of the other networks per pixel of the image, for one class, as
            counted by `python -m vlcp_ray.cost.count_flops`; NaN where not counted.
        published: torchvision's name of its weights for ImageNet-1K, if there are some.
    """

    name: str
    build: str
    poolings: int = 0
    flops_per_pixel: float = math.nan
    published: str = ""

    def forward_flops(self, size: int, width: int, classes: int) -> float:
        """Count the operations of a forward pass over an image of size x size pixels, `width` as in a ConvNet."""
        if not self.poolings:
            return self.flops_per_pixel * size**2 + 2 * _FEATURES * classes
        sides = [size // 2**level for level in range(self.poolings + 1)]
        channels = [3] + [width] * self.poolings
        convolutions = sum(2 * 9 * channels[n] * width * sides[n] ** 2 for n in range(self.poolings))
        return float(convolutions + 2 * width * sides[self.poolings] ** 2 * classes)


NETWORKS: Final[Mapping[str, Network]] = {
    network.name: network
    for network in (
        Network("ConvNet-3", "vlcp_ray.models.classifiers:conv_net", poolings=3),
        Network("ConvNet-4", "vlcp_ray.models.classifiers:conv_net", poolings=4),
        Network("ConvNet-5", "vlcp_ray.models.classifiers:conv_net", poolings=5),
        Network("ConvNet-6", "vlcp_ray.models.classifiers:conv_net", poolings=6),
        Network("ResNetAP-10", "vlcp_ray.models.classifiers:resnet_ap_10", flops_per_pixel=72576.02040816327),
        Network(
            "ResNet-18",
            "vlcp_ray.models.classifiers:resnet_18",
            flops_per_pixel=72288.02040816327,
            published="ResNet18_Weights.IMAGENET1K_V1",
        ),
        Network(
            "ResNet-18-modified", "vlcp_ray.models.classifiers:resnet_18_modified", flops_per_pixel=1084800.0204081633
        ),
    )
}
