"""Tests of the classifiers, against the published networks."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock

from vlcp_ray.models.classifiers import AveragePool2, InBfloat16, PooledBlock, build_classifier, head_of
from vlcp_ray.models.networks import Norm


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "published"),
    [
        ("ConvNet-6", 10, 754_570),
        ("ConvNet-6", 100, 858_340),
        ("ResNetAP-10", 10, 4_910_922),
        ("ResNetAP-10", 100, 4_957_092),
        ("ResNet-18", 10, 11_181_642),
        ("ResNet-18", 100, 11_227_812),
    ],
)
def test_classifier_with_instance_norm_has_published_number_of_parameters(
    name: str, num_classes: int, published: int
) -> None:
    network = build_classifier(name, num_classes=num_classes, input_size=224, width=128, seed=0)
    assert parameters(network) == published
    assert network(torch.zeros(1, 3, 224, 224)).shape == (1, num_classes)


@pytest.mark.parametrize(
    ("name", "num_classes", "published"),
    [
        ("ResNet-18", 1000, 11_689_512),  # torchvision's documentation
        ("ResNet-18-modified", 10, 11_173_962),
        ("ResNet-18-modified", 200, 11_271_432),  # 190 more outputs of 512 weights and a bias
        ("ConvNet-3", 10, 320_010),  # 2 * 128 parameters per norm layer, for both norms
        ("ResNetAP-10", 10, 4_910_922 - 3 * 64 * (49 - 9)),  # a stem of 3x3 in place of 7x7
    ],
)
def test_classifier_with_batch_norm_has_published_number_of_parameters(
    name: str, num_classes: int, published: int
) -> None:
    network = build_classifier(name, num_classes=num_classes, input_size=32, width=128, seed=0, norm="batch")
    assert parameters(network) == published
    assert not any(isinstance(module, nn.GroupNorm) for module in network.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, num_classes)


def test_resnet_18_modified_keeps_size_of_small_images() -> None:
    network = build_classifier("ResNet-18-modified", num_classes=10, input_size=32, width=1, seed=0, norm="batch")
    shapes: list[torch.Size] = []
    network.get_submodule("layer1").register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    network.eval()(torch.zeros(1, 3, 32, 32))
    assert shapes == [(1, 64, 32, 32)]


@pytest.mark.parametrize("name", ["ConvNet-3", "ResNetAP-10", "ResNet-18", "ResNet-18-modified"])
def test_head_of_returns_last_layer(name: str) -> None:
    network = build_classifier(name, num_classes=7, input_size=32, width=8, seed=0)
    assert head_of(network).out_features == 7


def test_resnet_ap_10_halves_by_pooling_not_by_strides() -> None:
    network = build_classifier("ResNetAP-10", num_classes=2, input_size=64, width=1, seed=0)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert {convolution.stride for convolution in convolutions} == {(1, 1)}
    assert len(convolutions) == 1 + 4 * 2 + 3  # stem, two per block, a shortcut in each block that widens
    features = network[:-3](torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, 512, 8, 8)  # halved once in each of three blocks


@pytest.mark.parametrize(("name", "depth"), [("ConvNet-3", 3), ("ConvNet-4", 4), ("ConvNet-5", 5), ("ConvNet-6", 6)])
def test_conv_net_has_depth_of_its_name_and_a_logit_per_class(name: str, depth: int) -> None:
    network = build_classifier(name, num_classes=7, input_size=67, width=8, seed=0)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == depth
    assert network(torch.zeros(2, 3, 67, 67)).shape == (2, 7)


def test_conv_net_of_too_small_image_is_refused() -> None:
    build_classifier("ConvNet-6", num_classes=2, input_size=64, width=8, seed=0)
    with pytest.raises(ValueError, match=r"input_size must be 64 or more for ConvNet-6 with instance norm, not 32"):
        build_classifier("ConvNet-6", num_classes=2, input_size=32, width=8, seed=0)


def test_build_classifier_depends_on_seed_and_keeps_global_random_state() -> None:
    def weights(seed: int) -> torch.Tensor:
        network = build_classifier("ConvNet-3", num_classes=4, input_size=32, width=8, seed=seed)
        return nn.utils.parameters_to_vector(network.parameters())

    torch.manual_seed(1)
    first, state = weights(5), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(weights(5), first)
    assert not torch.equal(weights(6), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_instance_norm_is_per_image_and_channel() -> None:
    """Scale and shift of an image's channel have no effect, nor have the other images of the batch."""
    network = build_classifier("ConvNet-3", num_classes=4, input_size=32, width=8, seed=0)
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [(8, 8)] * 3
    features = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = torch.stack([features[0] * 3 + 1, torch.zeros(8, 16, 16)])
    torch.testing.assert_close(norms[0](changed)[0], norms[0](features)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 7, 16])
def test_average_pool_2_equals_torch_with_gradient(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(2, 3, size, size + 3, generator=generator, dtype=torch.float64).requires_grad_()
    pooled, expected = AveragePool2()(images), nn.functional.avg_pool2d(images, 2)
    torch.testing.assert_close(pooled, expected)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (gradient,), (wanted,) = (torch.autograd.grad(values, images, weights) for values in (pooled, expected))
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize(
    ("size", "kernel", "after"), [(28, 3, 28), (64, 3, 64), (65, 3, 32), (96, 3, 48), (128, 3, 64), (224, 7, 56)]
)
@pytest.mark.parametrize("name", ["ResNetAP-10", "ResNet-18"])
def test_resnet_with_instance_norm_has_the_stem_of_train_models(name: str, size: int, kernel: int, after: int) -> None:
    """ResNet-18 pools by 3x3 of stride 2, so that an odd side is rounded up; its large stem also has stride 2."""
    network = build_classifier(name, num_classes=2, input_size=size, width=1, seed=0)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.kernel_size == (kernel, kernel)
    sides: list[int] = []
    block = next(m for m in network.modules() if isinstance(m, PooledBlock | BasicBlock))
    block.register_forward_pre_hook(lambda module, inputs: sides.append(inputs[0].shape[-1]))
    network(torch.zeros(1, 3, size, size))
    assert sides == [33 if (name, size) == ("ResNet-18", 65) else after]


@pytest.mark.parametrize(
    ("name", "norm"), [("ResNetAP-10", "instance"), ("ResNetAP-10", "batch"), ("ResNet-18", "instance")]
)
def test_resnet_starts_he_normal(name: str, norm: Norm) -> None:
    """N(0, sqrt(2 / (k k c_out))) as train_models of MinimaxDiffusion: torch's default is smaller by sqrt(6)."""
    network = build_classifier(name, num_classes=10, input_size=64, width=1, seed=0, norm=norm)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            wanted = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
            assert float(module.weight.detach().std()) == pytest.approx(wanted, rel=0.05)
            assert float(module.weight.detach().abs().max()) > 2.5 * wanted  # no uniform distribution
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            assert (float(module.weight.detach().min()), float(module.weight.detach().max())) == (1, 1)
            assert not module.bias.any()


def test_conv_net_and_modified_resnet_start_as_torchs_default() -> None:
    network = build_classifier("ConvNet-3", num_classes=10, input_size=32, width=64, seed=0)
    weights = [module.weight.detach() for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(float(w.abs().max()) <= 1 / math.sqrt(w[0].numel()) for w in weights)
    modified = build_classifier("ResNet-18-modified", num_classes=10, input_size=32, width=1, seed=0, norm="batch")
    assert float(next(modified.parameters()).detach().abs().max()) <= 1 / math.sqrt(27)  # RDED replaces its stem


@pytest.mark.parametrize("name", ["ConvNet-3", "ResNet-18-modified"])
def test_in_bfloat16_rounds_the_logits_and_keeps_weights_and_gradients_in_float32(name: str) -> None:
    exact = build_classifier(name, num_classes=10, input_size=32, width=16, seed=0, norm="batch")
    network = InBfloat16(build_classifier(name, num_classes=10, input_size=32, width=16, seed=0, norm="batch"))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, logits = exact(images), network(images)
    assert logits.dtype == torch.float32
    difference = float((logits - expected).detach().abs().max())
    assert 0 < difference < 0.1 * float(expected.detach().abs().max())
    logits.sum().backward()
    assert {p.dtype for p in network.parameters()} == {p.grad.dtype for p in network.parameters() if p.grad is not None}
    assert all(p.dtype == torch.float32 and p.grad is not None for p in network.parameters())
    network.eval()
    assert not network.network.training


def test_network_of_torchvision_is_its_own_with_weights_of_the_seed() -> None:
    def build(seed: int, norm: Norm) -> torch.nn.Module:
        return build_classifier("shufflenet_v2_x0_5", num_classes=7, input_size=32, width=9, seed=seed, norm=norm)

    before = torch.get_rng_state()
    first = build(3, "batch").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    expected = get_model("shufflenet_v2_x0_5", weights=None, num_classes=7).state_dict()
    same = build(3, "instance").state_dict()  # its norms are its own
    assert first.keys() == expected.keys() == same.keys()
    assert all(torch.equal(first[name], value) and torch.equal(same[name], value) for name, value in expected.items())
    assert not torch.equal(build(4, "batch").state_dict()["fc.weight"], first["fc.weight"])


@pytest.mark.parametrize(("name", "size"), [("vit_b_32", 64), ("maxvit_t", 224)])
def test_network_for_images_of_one_size_is_built_for_it(name: str, size: int) -> None:
    with torch.device("meta"):
        built = build_classifier(name, num_classes=3, input_size=size, width=9, seed=0).eval()
        assert built(torch.empty(1, 3, size, size)).shape == (1, 3)
