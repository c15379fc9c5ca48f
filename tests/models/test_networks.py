"""Tests of the operations of the networks, against torch's counter on the networks themselves."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlcp_ray.cost.count_flops import count_network
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.models.networks import NETWORKS, Network

RESNETS = [network for network in NETWORKS.values() if not network.poolings]


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_forward_flops_equals_count_of_built_network(network: Network, size: int) -> None:
    with torch.device("meta"):
        built = build_classifier(network.name, num_classes=100, input_size=size, width=64, seed=0, norm="batch").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        built(torch.empty(1, 3, size, size, device="meta"))
    assert network.forward_flops(size, 64, 100) == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("network", RESNETS, ids=lambda network: network.name)
def test_flops_per_pixel_equals_count(network: Network) -> None:
    assert network.flops_per_pixel == pytest.approx(count_network(network.name), rel=1e-12)


def test_forward_flops_equal_hand_computation() -> None:
    resnet = Network("x", "", flops_per_pixel=3.0)
    assert resnet.forward_flops(5, 9, 7) == 3 * 5**2 + 2 * 512 * 7
    # Sides of 10, 5 and 2 pixels; convolutions of 3 x 3 from 3 to 4 and from 4 to 4 channels; a layer of 4 x 2 x 2.
    convnet = Network("x", "", poolings=2)
    assert convnet.forward_flops(10, 4, 7) == 2 * 9 * (3 * 4 * 10**2 + 4 * 4 * 5**2) + 2 * 4 * 2**2 * 7
