"""Tests of the counts of classifiers: operations by known figures, memory by what a step must hold."""

import pytest

from vlcp_ray.cost.classifiers import forward_flops, training_gib, weights_gib
from vlcp_ray.cost.flops import classifier_flops

GIB = 2**30


def test_operations_are_those_that_torchvision_publishes() -> None:
    """GFLOPS of its table of weights at 224 pixels: multiplications with additions, of which each is two here."""
    published = {"resnet18": 1.81, "mobilenet_v2": 0.30, "efficientnet_b0": 0.39, "regnet_y_400mf": 0.40}
    counted = {name: forward_flops(name, 224, 1000) / 2e9 for name in published}
    assert counted == pytest.approx(published, rel=0.02)
    assert classifier_flops("resnet18", 224, 128, 1000, "batch") == forward_flops("resnet18", 224, 1000)


def test_resnet18_of_torchvision_counts_as_ours() -> None:
    ours = classifier_flops("ResNet-18", 224, 128, 10, "batch")
    assert classifier_flops("resnet18", 224, 128, 10, "batch") == pytest.approx(ours, rel=1e-3)


def test_memory_of_a_step_is_the_state_and_a_part_for_every_image() -> None:
    weights = weights_gib("mobilenet_v2", 64, 128, 10, "batch")
    assert weights * GIB / 4 == pytest.approx(2_236_682)  # its 2.2 million parameters with ten outputs
    of = {images: training_gib("mobilenet_v2", 64, 128, 10, "batch", images) for images in (10, 20, 40)}
    each = (of[20] - of[10]) / 10
    assert (of[40] - of[20]) / 20 == pytest.approx(each, rel=0.05)
    assert of[10] - 10 * each == pytest.approx(4 * weights, rel=0.3)  # weights, gradients and two moments
    larger = training_gib("mobilenet_v2", 128, 128, 10, "batch", 20) - training_gib(
        "mobilenet_v2", 128, 128, 10, "batch", 10
    )
    assert larger / 10 == pytest.approx(4 * each, rel=0.1)
