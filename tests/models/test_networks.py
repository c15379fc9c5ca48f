"""Tests of the operations of the networks, against torch's counter on the networks themselves."""

import math
from pkgutil import resolve_name

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlcp_ray.cost.count_flops import count_network
from vlcp_ray.models.classifiers import _instance_norm, build_classifier
from vlcp_ray.models.networks import NETWORKS, Network, Norm, check_input_size

OURS = {name: network for name, network in NETWORKS.items() if not network.is_of_torchvision}
RESNETS = [network for network in OURS.values() if not network.poolings]


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("size", [64, 96, 128, 224])
@pytest.mark.parametrize("network", OURS.values(), ids=OURS)
def test_forward_flops_equals_count_of_built_network(network: Network, size: int, norm: Norm) -> None:
    with torch.device("meta"):
        built = build_classifier(network.name, num_classes=100, input_size=size, width=64, seed=0, norm=norm).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        built(torch.empty(1, 3, size, size, device="meta"))
    assert network.forward_flops(size, 64, 100, norm) == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("network", RESNETS, ids=lambda network: network.name)
def test_flops_per_pixel_equals_count(network: Network) -> None:
    assert network.flops_per_pixel == count_network(network.name)


def test_forward_flops_equal_hand_computation() -> None:
    resnet = Network("x", "", {}, flops_per_pixel={"small": 3.0, "large": 5.0}, stems={"batch": "large"})
    assert resnet.forward_flops(5, 9, 7, "instance") == 3 * 5**2 + 2 * 512 * 7
    assert resnet.forward_flops(5, 9, 7, "batch") == 5 * 5**2 + 2 * 512 * 7
    assert math.isnan(resnet.forward_flops(65, 9, 7, "instance"))
    # Sides of 10, 5 and 2 pixels; convolutions of 3 x 3 from 3 to 4 and from 4 to 4 channels; a layer of 4 x 2 x 2.
    convnet = Network("x", "", {}, poolings=2)
    assert convnet.forward_flops(10, 4, 7, "batch") == 2 * 9 * (3 * 4 * 10**2 + 4 * 4 * 5**2) + 2 * 4 * 2**2 * 7


def test_stem_follows_the_size_of_the_images_where_the_released_one_does() -> None:
    sizes = {28: "small", 64: "small", 65: "middle", 128: "middle", 129: "large", 224: "large"}
    for size, stem in sizes.items():
        assert {NETWORKS["ResNetAP-10"].stem(size, norm) for norm in ("instance", "batch")} == {stem}
        assert NETWORKS["ResNet-18"].stem(size, "instance") == stem
        assert NETWORKS["ResNet-18"].stem(size, "batch") == "large"
        assert NETWORKS["ResNet-18-modified"].stem(size, "batch") == "small"


def test_check_input_size_names_the_network_the_size_and_those_that_fit() -> None:
    check_input_size(OURS, 64, "instance", "networks")
    with pytest.raises(ValueError, match="input_size must be 32 or more for ConvNet-5 with batch norm, not 16"):
        check_input_size(["ConvNet-3", "ConvNet-5"], 16, "batch", "networks")
    with pytest.raises(
        ValueError, match=r"raise input_size, or set networks to ConvNet-3 or ResNet-18 or ResNet-18-modified$"
    ):
        check_input_size(["ResNetAP-10"], 15, "instance", "networks")
    with pytest.raises(ValueError, match=r"raise input_size$"):
        check_input_size(["ResNetAP-10"], 4, "instance", "network")


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("network", OURS.values(), ids=OURS)
def test_smallest_size_is_the_smallest_at_which_the_image_changes_the_logits(network: Network, norm: Norm) -> None:
    """One pixel less, and the network cannot be built, or its last norm sees one place and gives zero."""
    smallest = network.smallest[norm]
    logits = []
    for side in {max(1, smallest - 1), smallest}:
        images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
        try:
            built = resolve(network, side, norm)
            outputs = built.train()(images)
            logits.append((side, float(outputs.detach().std(0).max()) > 1e-3))
        except (ValueError, RuntimeError, UserWarning):
            logits.append((side, False))
    assert dict(logits)[smallest]
    assert smallest == 1 or not dict(logits)[smallest - 1]


def resolve(network: Network, side: int, norm: Norm) -> torch.nn.Module:
    """Build a network without the check of its size."""
    layer = _instance_norm if norm == "instance" else torch.nn.BatchNorm2d
    built: torch.nn.Module = resolve_name(network.build)(network.name, 5, side, 8, layer, network.stem(side, norm))
    return built
