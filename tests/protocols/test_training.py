"""Tests of the training loop."""

import math

import pytest
import torch

from vlcp_ray.protocols.protocol import steps_per_epoch
from vlcp_ray.protocols.training import batches, train


def test_train_takes_every_image_once_an_epoch_in_a_new_order() -> None:
    pixels, recorded = torch.arange(10, dtype=torch.uint8).view(10, 1), []
    weight = torch.zeros(1, requires_grad=True)

    def record(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert pixels[:, 0].tolist() == labels.tolist()
        recorded.append(labels.tolist())
        return weight.sum()

    trained = train(
        torch.optim.SGD([weight]),
        (pixels, torch.arange(10)),
        record,
        lambda step: 0.1,
        epochs=3,
        batch_size=4,
        generator=torch.Generator().manual_seed(0),
    )
    assert [epoch.number for epoch in trained] == [1, 2, 3]
    assert [len(batch) for batch in recorded] == [4, 4, 2] * 3
    epochs = [[image for batch in recorded[i : i + 3] for image in batch] for i in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_train_sets_the_learning_rate_of_every_step() -> None:
    """With a constant gradient of 1 a weight falls by the sum of the learning rates."""
    weight = torch.zeros(1, requires_grad=True)
    images = (torch.zeros(5, 1), torch.zeros(5))
    generator, rates = torch.Generator().manual_seed(0), [1.0, 10.0, 100.0, 1000.0]
    for _ in train(
        torch.optim.SGD([weight]),
        images,
        lambda pixels, labels: weight.sum(),
        rates.__getitem__,
        epochs=2,
        batch_size=4,
        generator=generator,
    ):
        pass
    assert weight.item() == -1111


@pytest.mark.parametrize(
    ("count", "size", "min_batch", "sizes"),
    [(10, 4, 1, [4, 4, 2]), (9, 4, 1, [4, 4, 1]), (9, 4, 2, [4, 5]), (8, 4, 2, [4, 4]), (1, 4, 2, [1])],
)
def test_batches_joins_a_too_small_last_batch(count: int, size: int, min_batch: int, sizes: list[int]) -> None:
    parts = batches(torch.arange(count), size, min_batch)
    assert [len(part) for part in parts] == sizes
    assert torch.cat(parts).tolist() == list(range(count))
    assert steps_per_epoch(count, size, min_batch) == len(sizes)


def test_train_yields_the_mean_loss_of_each_epoch() -> None:
    weight = torch.zeros(1, requires_grad=True)
    losses = iter([1.0, 2.0, 6.0, 0.0, 0.0, float("nan")])
    epochs = train(
        torch.optim.SGD([weight]),
        (torch.zeros(6, 1), torch.zeros(6)),
        lambda pixels, labels: weight.sum() + next(losses),
        lambda step: 0.0,
        epochs=2,
        batch_size=2,
        generator=torch.Generator().manual_seed(0),
    )
    first, second = (float(epoch.loss) for epoch in epochs)
    assert first == 3
    assert math.isnan(second)
