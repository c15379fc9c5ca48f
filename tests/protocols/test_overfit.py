"""Tests that every network can learn twenty images by heart, with the norm of each protocol, at each usual size."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.models.networks import NETWORKS, Norm, check_input_size
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.stages.stage import TRAINING_PASSES

SIZES = (28, 32, 64, 96, 128, 224)
IMAGES, CLASSES, WIDTH = 20, 10, 16
STEPS = 400
#: Operations of a step from which on a network is tried with the fault tests: a second on two cores.
SLOW = 5e10


def cases() -> list[Any]:
    found = []
    for norm in dict.fromkeys(protocol.norm for protocol in PROTOCOLS.values()):
        for network in (one for one in NETWORKS.values() if not one.is_of_torchvision):
            for size in SIZES:
                flops = TRAINING_PASSES * IMAGES * network.forward_flops(size, WIDTH, CLASSES, norm)
                marks = [pytest.mark.faults, pytest.mark.timeout(900)] if flops > SLOW else []
                found.append(pytest.param(network.name, size, norm, marks=marks))
    return found


@pytest.mark.parametrize(("name", "size", "norm"), cases())
def test_network_learns_twenty_images_by_heart_or_is_refused(name: str, size: int, norm: Norm) -> None:
    if size < NETWORKS[name].smallest[norm]:
        with pytest.raises(ValueError, match=f"or more for {name} with {norm} norm, not {size}"):
            check_input_size([name], size, norm, "networks")
        return
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(IMAGES, 3, size, size, generator=generator), torch.arange(IMAGES) % CLASSES
    network = build_classifier(name, num_classes=CLASSES, input_size=size, width=WIDTH, seed=0, norm=norm)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(STEPS):
        logits = network(images)
        if bool((logits.argmax(1) == labels).all()):
            return
        optimizer.zero_grad()
        cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    raise AssertionError(f"{int((logits.argmax(1) == labels).sum())} of {IMAGES} images after {STEPS} steps")
