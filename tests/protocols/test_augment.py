"""Tests of the augmentations: equal to the published per-image code, and reproducible."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from vlcp_ray.protocols import augment
from vlcp_ray.protocols.augment import (
    crop,
    crop_boxes,
    crop_together,
    cut_box,
    cutmix,
    jitter_colours,
    normalise,
    random_crop,
    random_shift,
    shuffle_patches,
)

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SCALE = (0.5, 1.0)
NO_FLIP = torch.zeros(5, dtype=torch.bool)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def view(images: torch.Tensor, seed: int, flip: bool = True) -> torch.Tensor:
    return augment.augment(images, seeded(seed), flip, SCALE, 0.4, 0.1)


def noise(count: int = 5, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeded(seed))


def pixels(count: int = 5, size: int = 32) -> torch.Tensor:
    return (noise(count, size) * 255).to(torch.uint8)


def test_crop_of_the_whole_image_is_the_image_or_its_mirror() -> None:
    images, boxes = noise(), torch.tensor([[0.0, 0, 32, 32]]).expand(5, 4)
    torch.testing.assert_close(crop(images, boxes, NO_FLIP), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(crop(images, boxes, ~NO_FLIP), images.flip(3), atol=1e-5, rtol=0)


@given(seed=st.integers(0, 2**31), size=st.integers(8, 40))
@settings(deadline=None, max_examples=20)
def test_crop_cuts_before_it_resizes(seed: int, size: int) -> None:
    images, boxes = noise(5, size, seed), crop_boxes(5, size, seeded(seed), SCALE)
    for image, box, view in zip(images, boxes.int().tolist(), crop(images, boxes, NO_FLIP), strict=True):
        left, top, width, height = box
        cut = image[None, :, top : top + height, left : left + width]
        expected = torch.nn.functional.interpolate(cut, (size, size), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [8, 32, 224])
def test_crop_boxes_lie_inside_and_cover_scale_ratio_and_place(size: int) -> None:
    left, top, width, height = crop_boxes(4000, size, seeded(), SCALE).unbind(1)
    assert left.min() >= 0
    assert top.min() >= 0
    assert (left + width).max() == size == (top + height).max()
    shares, ratios = width * height / size**2, width / height
    slack = 1.5 / size  # sides are whole pixels
    assert 0.5 - slack < shares.min() < 0.52 + slack
    assert shares.max() > 0.98
    assert 0.75 - slack < ratios.min() < 0.77 + slack
    assert 1.30 - slack < ratios.max() < 4 / 3 + 2 * slack
    # Scale u fits with probability min(1, -ln u / ln 4/3): the mean of what fits is 0.692, not 0.75.
    assert abs(shares.mean() - 0.692) < 0.01 + slack / 4
    free = size - width
    assert abs((left[free > 0] / free[free > 0]).mean() - 0.5) < 0.05


def test_crop_boxes_cover_the_given_scale() -> None:
    _, _, width, height = crop_boxes(4000, 224, seeded(), (0.08, 0.2)).unbind(1)
    shares = width * height / 224**2
    assert 0.075 < shares.min() < 0.09
    assert 0.19 < shares.max() < 0.205
    torch.testing.assert_close(
        random_crop(pixels(), seeded(), flip=False, scale=(1, 1))[:, :, 1:-1, 1:-1].mean(),
        (pixels().float() / 255).mean(),
        atol=0.02,
        rtol=0,
    )


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (12, 3), (32, 1)])
def test_shuffle_patches_moves_patches_only(size: int, factor: int) -> None:
    images, side = pixels(40, size), size // factor
    shuffled = shuffle_patches(images, factor, seeded())
    arrangements = set()
    for before, after in zip(images, shuffled, strict=True):
        places = [(y, x) for y in range(0, size, side) for x in range(0, size, side)]
        old = [before[:, y : y + side, x : x + side] for y, x in places]
        new = [after[:, y : y + side, x : x + side] for y, x in places]
        order = [next(i for i, patch in enumerate(old) if torch.equal(patch, moved)) for moved in new]
        assert sorted(order) == list(range(factor**2))
        arrangements.add(tuple(order))
        columns = {tuple(i % factor for i in order[row : row + factor]) for row in range(0, factor**2, factor)}
        assert len(columns) == 1  # whole columns are shuffled, then whole rows
    assert len(arrangements) > {1: 0, 2: 3, 3: 15}[factor]
    assert torch.equal(shuffle_patches(images, factor, seeded()), shuffled)


def test_shuffle_patches_that_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="images of 32 pixels cannot be cut into 3 patches per side"):
        shuffle_patches(pixels(), 3, seeded())


def test_random_shift_gives_windows_of_the_padded_image() -> None:
    images = pixels(60, 16)
    padded = normalise(torch.nn.functional.pad(images, (2, 2, 2, 2)))
    corners, mirrors = set(), 0
    for image, view in zip(padded, random_shift(images, seeded(), flip=True, padding=2), strict=True):
        matches = [
            (y, x, mirror)
            for y, x, mirror in itertools.product(range(5), range(5), (False, True))
            if torch.equal(view.flip(2) if mirror else view, image[:, y : y + 16, x : x + 16])
        ]
        assert len(matches) == 1
        corners.add(matches[0][:2])
        mirrors += matches[0][2]
    assert len(corners) > 15
    assert 15 < mirrors < 45


def test_augment_without_jitter_shuffles_crops_and_normalises() -> None:
    images = pixels(6, 16)
    again = seeded(4)
    expected = random_crop(shuffle_patches(images, 2, again), again, flip=True, scale=(0.5, 1.0))
    views = augment.augment_without_jitter(images, seeded(4), True, (0.5, 1.0), 2)
    torch.testing.assert_close(views, (expected - MEAN) / STD, atol=1e-5, rtol=1e-5)
    assert torch.equal(images, pixels(6, 16))


def test_jitter_colours_equals_the_released_code() -> None:
    """Compare the affine map with the three jitters, the lighting and the normalisation, one after the other."""
    images, generator = noise(12, 8), seeded(3)
    jittered = jitter_colours(images, generator, 0.4, 0.1)
    again = seeded(3)
    shares = torch.empty(12, 3).uniform_(-0.4, 0.4, generator=again)
    order = torch.rand(12, 3, generator=again).argsort(1)
    alphas = torch.randn(12, 3, generator=again) * 0.1
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    for i, image in enumerate(images):
        for kind in order[i].tolist():
            grey = (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]).expand(3, -1, -1)
            goal = (torch.zeros_like(image), torch.full_like(image, float(grey.mean())), grey)[kind]
            image = image.lerp(goal, float(shares[i, kind]))
        image = image + (vectors * alphas[i] * values).sum(1).view(3, 1, 1)
        torch.testing.assert_close(jittered[i], (image - MEAN) / STD, atol=1e-5, rtol=1e-5)
    assert len({tuple(row) for row in order.tolist()}) > 3  # the order is sampled per image


def test_normalise_subtracts_the_mean_and_divides_by_the_std() -> None:
    expected = torch.from_numpy((pixels().numpy() / 255 - np.asarray(MEAN)) / np.asarray(STD)).float()
    torch.testing.assert_close(normalise(pixels()), expected, atol=1e-5, rtol=1e-5)


def test_augment_depends_on_the_generator_only() -> None:
    torch.manual_seed(1)
    first = view(pixels(), 7)
    torch.manual_seed(2)
    assert torch.equal(view(pixels(), 7), first)
    assert not torch.equal(view(pixels(), 8), first)


def test_augment_of_an_image_is_independent_of_others() -> None:
    """A view depends on its position in the batch, which determines its random numbers, and not on other images."""
    batch = pixels()
    other = batch.flip(0).clone()
    other[1] = batch[1]
    views, others = (view(images, 7) for images in (batch, other))
    torch.testing.assert_close(views[1], others[1])
    assert not torch.allclose(views[0], others[0])


def test_augment_without_flip_mirrors_nothing() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(64, 3, 32, 32)

    def rising(flip: bool) -> int:
        views = view(ramp, 0, flip)
        return int((views[:, :, :, -1] > views[:, :, :, 0]).all(2).all(1).sum())

    assert rising(flip=False) == 64
    assert 16 < rising(flip=True) < 48


def test_cutmix_share_is_that_of_the_pixels() -> None:
    marks = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 9, 9)
    labels = torch.arange(6) + 10
    shares = set()
    for seed in range(300):
        mixed, own, pasted, share = cutmix(marks, labels, seeded(seed))
        for i, (a, b) in enumerate(zip(own.tolist(), pasted.tolist(), strict=True)):
            counted = (mixed[i, 0] == a - 10).sum() / 81
            assert a == labels[i]
            assert float(counted) == pytest.approx(share if a != b else 1)
            assert float((mixed[i] == b - 10).sum()) == pytest.approx(243 * (1 - share) if a != b else 243)
        shares.add(share)
    assert len(shares) > 10
    assert torch.equal(marks[:, 0, 0, 0], torch.arange(6.0))  # the batch itself is not changed


def test_cut_box_is_a_clipped_square_of_any_size() -> None:
    boxes = [cut_box(1024, seeded(seed)) for seed in range(2000)]
    areas = np.array([(bottom - top) * (right - left) for top, bottom, left, right in boxes]) / 1024**2
    assert all(0 <= side <= 1024 for side in itertools.chain(*boxes))
    assert areas.min() < 0.01
    assert areas.max() > 0.8
    # Of a square of side a with a uniform centre, a - a^2 / 4 of each side is left; a^2 is uniform: 1/2 - 1/5 + 1/48.
    assert abs(areas.mean() - 0.3208) < 0.02


def released_views(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Make training views image by image as MinimaxDiffusion does: torchvision's crop and flip, the three jitters in
    random order, PCA lighting, ImageNet's mean and std (data.py and misc/utils.py there)."""
    rng = np.random.default_rng(seed)
    crop_and_flip = v2.Compose(
        [v2.RandomResizedCrop(images.shape[-1], SCALE, antialias=True), v2.RandomHorizontalFlip()]
    )
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    views = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for image in images.float() / 255:
            view = crop_and_flip(image)
            for kind in rng.permutation(3):
                share = 1 + rng.uniform(-0.4, 0.4)
                grey = (view * luma).sum(0, keepdim=True).expand_as(view)
                goal = (torch.zeros_like(view), grey.mean().expand_as(view), grey)[kind]
                view = goal + share * (view - goal)
            light = torch.tensor(vectors @ (rng.normal(0, 0.1, 3) * values), dtype=torch.float32)
            views.append((view + light.view(3, 1, 1) - MEAN) / STD)
    return torch.stack(views)


def statistics(views: torch.Tensor) -> dict[str, np.ndarray]:
    """Measures of each view: brightness, contrast, colourfulness, detail, and how much darker its left half is."""
    half = views.shape[-1] // 2
    grey = views.mean(1)
    measures = {
        "red": views[:, 0].mean((1, 2)),
        "green": views[:, 1].mean((1, 2)),
        "blue": views[:, 2].mean((1, 2)),
        "contrast": grey.flatten(1).std(1),
        "colour": views.std(1).mean((1, 2)),
        "detail": (grey[:, :, 1:] - grey[:, :, :-1]).abs().mean((1, 2)),
        "left": grey[:, :, :half].mean((1, 2)) - grey[:, :, half:].mean((1, 2)),
        "top": grey[:, :half].mean((1, 2)) - grey[:, half:].mean((1, 2)),
    }
    return {name: values.numpy().round(4) for name, values in measures.items()}  # equal views stay equal


def photograph(size: int = 32) -> torch.Tensor:
    """A picture of soft blobs of colour, brighter at the top left, of which crops and mirrors are told apart."""
    coarse = (
        torch.rand(1, 3, 6, 6, generator=seeded(8)) * torch.linspace(1, 0.3, 6).view(6, 1) * torch.linspace(1, 0.5, 6)
    )
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def assert_same_distribution(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    for name, values in statistics(ours).items():
        assert ks_2samp(values, statistics(theirs)[name]).pvalue > 0.001, name


def test_augmented_batches_have_the_statistics_of_the_released_code() -> None:
    images = photograph().expand(1200, 3, 32, 32)
    theirs = released_views(images, 1)
    assert_same_distribution(view(images, 0), theirs)
    for changed in (
        augment.augment(images, seeded(0), True, SCALE, 0.3, 0.1),
        augment.augment(images, seeded(0), True, (0.3, 1.0), 0.4, 0.1),
        augment.augment(images, seeded(0), False, SCALE, 0.4, 0.1),
    ):  # the comparison sees a jitter of 0.3, smaller crops and a missing flip
        with pytest.raises(AssertionError):
            assert_same_distribution(changed, theirs)


@pytest.mark.parametrize("factor", [1, 2])
def test_batches_without_jitter_have_the_statistics_of_the_released_code(factor: int) -> None:
    """RDED's ShufflePatches (columns, then rows), RandomResizedCrop with scale (1 / factor, 1), flip, mean and std."""
    images, rng = photograph().expand(1200, 3, 32, 32), np.random.default_rng(3)
    pipeline = v2.Compose([v2.RandomResizedCrop(32, (1 / factor, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    views = []
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for image in images.float() / 255:
            for axis in (2, 1):
                parts = image.chunk(factor, axis)
                image = torch.cat([parts[i] for i in rng.permutation(factor)], axis)
            views.append((pipeline(image) - MEAN) / STD)
    ours = augment.augment_without_jitter(images, seeded(2), True, (1 / factor, 1.0), factor)
    assert_same_distribution(ours, torch.stack(views))


def test_cutmix_shares_have_the_distribution_of_the_released_code() -> None:
    """CutMix of MinimaxDiffusion and RDED: lambda from Beta(1, 1), a box of side size x sqrt(1 - lambda) around a
    uniform centre, clipped; the own share is counted from the clipped box."""
    rng, theirs = np.random.default_rng(0), []
    for _ in range(4000):
        side, (x, y) = int(64 * np.sqrt(1 - rng.beta(1, 1))), rng.integers(64, size=2)
        width, height = (np.clip(c + side // 2, 0, 64) - np.clip(c - side // 2, 0, 64) for c in (x, y))
        theirs.append(1 - width * height / 64**2)
    generator = seeded(1)
    ours = [cutmix(torch.zeros(2, 1, 64, 64), torch.arange(2), generator)[3] for _ in range(4000)]
    assert ks_2samp(ours, theirs).pvalue > 0.001
    assert np.mean(ours) == pytest.approx(1 - 0.3208, abs=0.02)


@pytest.mark.parametrize("mirrored", [False, True])
def test_crop_together_is_the_crop_of_every_image_by_the_same_box(mirrored: bool) -> None:
    images = noise().requires_grad_()
    for box in crop_boxes(8, 32, seeded(), (0.08, 1.0)):
        views = crop_together(images, box.tolist(), mirrored)
        expected = crop(images, box.expand(5, -1), torch.full((5,), mirrored))
        torch.testing.assert_close(views, expected, atol=1e-5, rtol=0)
    views.sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert float(images.grad.sum()) == pytest.approx(views.numel(), rel=1e-4)
