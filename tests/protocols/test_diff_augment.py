"""Tests of DiffAug: the ranges of the published code, one change for all images or one for each."""

import pytest
import torch

from vlcp_ray.protocols.diff_augment import augment_each, augment_together


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augment_together_changes_equal_images_equally_and_augment_each_does_not() -> None:
    images = torch.rand(1, 3, 32, 32).expand(6, -1, -1, -1)
    together, each = augment_together(images, seeded(0)), augment_each(images, seeded(0))
    assert all(torch.equal(together[0], other) for other in together)
    assert not any(torch.equal(each[0], other) for other in each[1:])
    assert torch.equal(augment_together(images, seeded(0)), together)


def test_augment_together_cuts_a_square_of_half_the_side_that_may_leave_the_image() -> None:
    counts = []
    for seed in range(60):
        views = augment_together(torch.full((1, 3, 32, 32), 5.0), seeded(seed))
        counts.append(int((views[0, 0, 4:28, 4:28] == 0).sum()))  # a shift leaves up to four pixels of the border empty
    assert max(counts) == 16 * 16
    assert min(counts) < 16 * 16


@pytest.mark.parametrize("function", [augment_together, augment_each])
def test_augmentation_is_differentiable_and_within_the_published_ranges(function: object) -> None:
    images = torch.full((8, 3, 32, 32), 0.25).requires_grad_()
    seen = []
    for seed in range(50):
        views = function(images, seeded(seed))  # type: ignore[operator]
        seen.append(views.detach().flatten())
    (gradient,) = torch.autograd.grad(views.sum(), images)
    assert gradient.abs().sum() > 0
    values = torch.cat(seen)
    # Grey images: saturation and contrast change nothing, brightness adds -0.5 to 0.5; empty pixels are 0.
    assert float(values.min()) >= 0.25 - 0.5 - 1e-5
    assert float(values.max()) <= 0.25 + 0.5 + 1e-5
    assert float(values.max()) > 0.7
