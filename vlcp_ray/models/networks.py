"""The classifiers that can be trained, one row each. Imports no library, so that the settings can list them."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
        name: as `evaluate.networks` and `teach.network` name it; of a network of torchvision its name there.
        build: `module:function` that builds it (see `models.classifiers.build_classifier`).
        smallest: the smallest side of an image in pixels, by norm: a map of one place has nothing to normalise within
            an image, so that a network with instance norm would not see the image.
        poolings: how many times a ConvNet halves the image, from which its operations follow; 0 for the other networks.
        stems: the stem of a ResNet by norm, where it does not follow from the size of the images.
        flops_per_pixel: by stem, operations of a forward pass of the other networks per pixel of the image, without the
            last layer, as counted by `python -m vlcp_ray.cost.count_flops`.
        published: torchvision's name of its weights for ImageNet-1K, if there are some.
        multiple: the side of an image in pixels is a multiple of it: the patches of a ViT.
        own_norm: of a network of torchvision, which keeps its norm under every protocol; empty for the other networks,
            whose norm is the protocol's.
        head: of a network of torchvision the name of its linear last layer, whose inputs are a teacher's features;
            empty where the last layer is another.
    """

    name: str
    build: str
    smallest: Mapping[Norm, int]
    poolings: int = 0
    stems: Mapping[Norm, Stem] = field(default_factory=dict)
    flops_per_pixel: Mapping[Stem, float] = field(default_factory=dict)
    published: str = ""
    multiple: int = 1
    own_norm: Literal["", "batch", "layer", "none"] = ""
    head: str = ""

    @property
    def is_of_torchvision(self) -> bool:
        """Whether torchvision builds it, from its name alone."""
        return bool(self.own_norm)

    @property
    def can_teach(self) -> bool:
        """Whether its last layer is linear."""
        return bool(self.head) or not self.is_of_torchvision

    def takes(self, size: int, norm: Norm) -> bool:
        """Return whether it can learn from images of size x size pixels."""
        return size >= self.smallest[norm] and not size % self.multiple

    def min_batch(self, norm: Norm) -> int:
        """Return the fewest images of a training step: batch norm needs two, as the last map may be one place."""
        return 2 if (self.own_norm or norm) == "batch" else 1

    def stem(self, size: int, norm: Norm) -> Stem:
        """Return the stem of a ResNet for images of size x size pixels."""
        by_size: Stem = next((stem for limit, stem in _STEMS if size <= limit), "large")
        return self.stems.get(norm, by_size)

    def forward_flops(self, size: int, width: int, classes: int, norm: Norm) -> float:
        """Count the operations of a forward pass over an image of size x size pixels, `width` as in a ConvNet.

        NaN for a network of torchvision (see `cost.classifiers`).
        """
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


def _of_torchvision() -> Iterator[Network]:
    """Read the classifiers of torchvision, a line for each.

    Those that are trained by the losses of auxiliary heads are left out: no protocol has these.
    """
    with Path(__file__).with_name("torchvision.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            yield Network(
                row["network"],
                "vlcp_ray.models.classifiers:of_torchvision",
                dict.fromkeys(get_args(Norm), int(row["smallest"])),
                published=row["weights"],
                multiple=int(row["multiple"]),
                own_norm=row["norm"],  # type: ignore[arg-type]  # a test compares it with the network
                head=row["head"].strip("-"),
            )


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
        *_of_torchvision(),
    )
}
#: Those whose norm is the protocol's: all but those of torchvision.
OWN: Final[Mapping[str, Network]] = {
    name: network for name, network in NETWORKS.items() if not network.is_of_torchvision
}
#: Classifiers of torchvision that are none of NETWORKS, and why.
REFUSED: Final[Mapping[str, str]] = dict.fromkeys(
    ("googlenet", "inception_v3"), "is trained by the losses of auxiliary heads, which no protocol here has"
)


def check_input_size(names: Iterable[str], size: int, norm: Norm, field: str) -> None:
    """Refuse networks that cannot learn from images of size x size pixels.

    Args:
        field: the setting that names the networks.

    Raises:
        ValueError: names the network, the size that it needs, and the networks that fit.
    """
    for name in names:
        network = NETWORKS[name]
        if network.takes(size, norm):
            continue
        own = "" if network.own_norm else f" with {norm} norm"
        multiple = f" and a multiple of {network.multiple}" if network.multiple > 1 else ""
        lost = ", which leaves it nothing to learn from" if size < network.smallest[norm] else ""
        raise ValueError(
            f"input_size must be {network.smallest[norm]} or more{multiple} for {name}{own}, not {size}{lost}; change "
            f"input_size{_instead(field, [one.name for one in NETWORKS.values() if one.takes(size, norm)])}"
        )


def check_width(names: Sequence[str], is_set: bool, field: str) -> None:
    """Refuse a width that no network has.

    Args:
        is_set: whether the width is another than the default.
        field: the setting that names the networks.

    Raises:
        ValueError: names the networks that have one.
    """
    if is_set and not any(NETWORKS[name].poolings for name in names):
        own = "has widths of its own" if len(names) == 1 else "have widths of their own"
        raise ValueError(
            f"width is for ConvNets only, and {' and '.join(names)} {own}; leave width out"
            f"{_instead(field, [one.name for one in NETWORKS.values() if one.poolings])}"
        )


def check_batch_size(names: Iterable[str], batch_size: int | None, norm: Norm, field: str) -> None:
    """Refuse training steps on one image for networks with batch norm.

    Raises:
        ValueError: names the networks without.
    """
    for name in names:
        if batch_size == 1 and NETWORKS[name].min_batch(norm) > 1:
            others = [one.name for one in NETWORKS.values() if one.min_batch(norm) == 1]
            raise ValueError(
                f"batch_size must be 2 or more for {name}: batch norm needs several images{_instead(field, others)}"
            )


def check_teacher(name: str, field: str) -> None:
    """Refuse a teacher without a linear last layer, from which features and the outputs of classes are taken.

    Raises:
        ValueError: names the networks that have one.
    """
    if not NETWORKS[name].can_teach:
        others = [one.name for one in NETWORKS.values() if one.can_teach]
        raise ValueError(
            f"{field}: the last layer of {name} is not linear, as that of a teacher is{_instead(field, others)}"
        )


def _instead(field: str, names: list[str]) -> str:
    return f", or set {field} to one of: {', '.join(names)}" if names else ""
