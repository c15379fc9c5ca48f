"""Tests of the operations of the networks, against torch's counter on the networks themselves."""

import math
from pkgutil import resolve_name

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models import get_model_weights, list_models

from vlcp_ray.cost.count_flops import count_network
from vlcp_ray.models.classifiers import _instance_norm, build_classifier
from vlcp_ray.models.networks import NETWORKS, REFUSED, Network, Norm, check_input_size

OURS = {name: network for name, network in NETWORKS.items() if not network.is_of_torchvision}
OF_TORCHVISION = {name: network for name, network in NETWORKS.items() if network.is_of_torchvision}
FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t",
    "vgg11", "vit_b_16",
)  # fmt: skip
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
    with pytest.raises(ValueError, match="nothing to learn from; change input_size, or set networks to one of: ") as it:
        check_input_size(["ResNetAP-10"], 15, "instance", "networks")
    listed = str(it.value).split("one of: ")[1].split(", ")
    assert listed[:4] == ["ConvNet-3", "ResNet-18", "ResNet-18-modified", "efficientnet_b0"]
    assert "vit_b_16" not in listed  # 16 pixels
    assert "swin_t" in listed
    with pytest.raises(ValueError, match=r"alexnet, not 62, which.* nothing to learn from"):
        check_input_size(["alexnet"], 62, "batch", "network")


def test_networks_of_torchvision_are_all_but_those_with_auxiliary_heads() -> None:
    assert {*OF_TORCHVISION, *REFUSED} == set(list_models(module=models))
    for name, network in OF_TORCHVISION.items():
        weights = get_model_weights(name)
        published = "IMAGENET1K_V1" in weights.__members__
        assert network.published == (f"{weights.__name__}.IMAGENET1K_V1" if published else "")


@pytest.mark.parametrize("name", FAMILIES)
def test_row_of_torchvision_says_what_the_network_has(name: str) -> None:
    """One of each family, at the smallest size of its row and one pixel below."""
    network = NETWORKS[name]
    smallest = network.smallest["batch"]
    built = resolve(network, smallest, "batch")
    kinds = {type(module).__name__ for module in built.modules()}
    norm = "batch" if "BatchNorm2d" in kinds else "layer" if kinds & {"LayerNorm", "LayerNorm2d"} else "none"
    assert network.own_norm == norm
    *_, last = [part for part, module in built.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert network.head == (last if isinstance(built.get_submodule(last), nn.Linear) else "")
    assert differ(built, smallest)
    assert smallest == 1 or not can_learn(network, smallest - 1)


def can_learn(network: Network, side: int) -> bool:
    try:
        return differ(resolve(network, side, "batch"), side)
    except (AssertionError, RuntimeError, ValueError):  # what torchvision and torch raise for a size too small
        return False


def differ(built: nn.Module, side: int) -> bool:
    """Whether two images have other features, or logits, in a training step without dropout."""
    for module in built.modules():
        if "Dropout" in type(module).__name__ or "Depth" in type(module).__name__:
            module.p = 0.0  # type: ignore[assignment]
    inputs: list[torch.Tensor] = []
    *_, last = [module for module in built.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    last.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        built.train()(images)
    return bool((inputs[0][0] != inputs[0][1]).any())


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
