"""Tests of the benchmark of evaluate: the networks of its cases can be trained at their sizes."""

import pytest
import torch

from tests.benchmarks.evaluate import CASES, batched, per_image, prepare


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_both_sides_train_an_epoch_of_a_case(case: tuple[str, int, int, int, int]) -> None:
    name, width, size, _, epochs = case
    small = (name, width, size, 8, epochs)
    network, images, settings = prepare(small)
    assert (settings.networks, settings.width, images.pixels.shape) == ((name,), width, (8, 3, size, size))
    before = torch.get_num_threads()
    try:
        assert next(batched(small)) == next(per_image(small)) == 1
    finally:
        torch.set_num_threads(before)
    assert all(parameter.requires_grad for parameter in network.parameters())
