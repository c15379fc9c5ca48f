"""Tests of RDED: crops, their scores, and tiled images."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.labelled_digits import NAMES
from tests.labelled_digits import digits as labelled_digits
from vlcp_ray.config import load_job
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.images import Pixels, decode, encode_png
from vlcp_ray.methods import rded as method
from vlcp_ray.methods.rded import PADDING, Patches, best_patches, crop_boxes, pool_ids, tile
from vlcp_ray.pipeline import graph
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.ingest import Expect


def rded(*given: Any, ipc: int, **settings: Any) -> tuple[Pixels, list[list[str]]]:
    """Make the set of one size; a larger one is made with it, which must not change it."""
    sets = method.rded(*given, ipcs=[ipc, ipc + 1], **settings)
    assert len(sets[ipc + 1][0]) == ipc + 1
    return sets[ipc]


def photos(n: int, seed: int = 0) -> tuple[list[Pixels], list[str]]:
    """Make images of blocks of colour, of all shapes, whose crops differ in brightness."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        height, width = rng.integers(20, 60, 2)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
        images.append(np.ascontiguousarray(coarse[rows][:, columns]))
    return images, [f"i{number:03d}" for number in range(n)]


def brightness(pixels: Pixels) -> npt.NDArray[np.float64]:
    """Score by brightness, so that the darkest is the best: easy to check by hand."""
    assert pixels.dtype == np.uint8
    assert pixels.shape[1] == 3
    return pixels.mean(axis=(1, 2, 3), dtype=np.float64)


def padded(patch: Pixels, size: int) -> float:
    """Compute the brightness of one patch in the middle of mean grey."""
    frame = np.full((size, size, 3), PADDING, dtype=np.uint8)
    start, side = (size - len(patch)) // 2, len(patch)
    frame[start : start + side, start : start + side] = patch
    return float(frame.mean(dtype=np.float64))


def candidates(image: Pixels, image_id: str, seed: int, count: int, side: int) -> list[Pixels]:
    """Make all crops of an image with torchvision in place of Pillow."""
    import torch
    from torchvision.transforms.v2 import functional

    tensor = torch.from_numpy(image).permute(2, 0, 1).float()
    rng = np.random.default_rng(seed_for(seed, "rded", image_id))
    crops = []
    for left, top, length in crop_boxes(image.shape[1], image.shape[0], count, rng).tolist():
        view = functional.resized_crop(tensor, top, left, length, length, [side, side], antialias=True)
        crops.append(view.round().byte().permute(1, 2, 0).numpy())
    return crops


@pytest.mark.parametrize("size", [16, 32])
def test_best_patches_are_the_best_crops_of_the_best_images(size: int) -> None:
    images, image_ids = photos(12, seed=4)  # no two scores are so near that rounding could swap them
    best = best_patches(images, image_ids, brightness, count=8, side=16, size=size, seed=3)
    crops = {name: candidates(image, name, 3, 5, 16) for image, name in zip(images, image_ids, strict=True)}
    scores = {name: min(padded(patch, size) for patch in crops[name]) for name in image_ids}
    assert best.image_ids == sorted(image_ids, key=scores.__getitem__)[:8]
    assert best.scores == pytest.approx([scores[name] for name in best.image_ids], abs=0.1)
    for name, patch in zip(best.image_ids, best.pixels, strict=True):
        expected = min(crops[name], key=lambda crop: padded(crop, size)).astype(int)
        assert np.abs(patch.astype(int) - expected).max() <= 1  # Pillow rounds after each direction


def test_best_patches_are_scored_in_the_middle_of_mean_grey() -> None:
    import torch

    from vlcp_ray.protocols.augment import normalise

    images, image_ids = photos(70)
    scored: list[Pixels] = []

    def score(pixels: Pixels) -> npt.NDArray[np.float64]:
        scored.append(pixels)
        return brightness(pixels)

    best_patches(images, image_ids, score, count=4, side=8, size=17, seed=0)
    frames = np.concatenate(scored)
    assert frames.shape == (350, 3, 17, 17)
    assert max(map(len, scored)) <= 256
    outside = np.ones((17, 17), dtype=bool)
    outside[4:12, 4:12] = False
    assert (frames.transpose(0, 2, 3, 1)[:, outside] == PADDING).all()
    assert normalise(torch.from_numpy(frames[:1]))[0, :, 0, 0].abs().max() < 0.01


@given(
    factor=st.integers(1, 3),
    ipc=st.integers(1, 4),
    n=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=30)
def test_rded_is_independent_of_the_order(factor: int, ipc: int, n: int, seed: int) -> None:
    images, image_ids = photos(n)
    tiled, used = rded(images, image_ids, brightness, ipc=ipc, factor=factor, size=4 * factor, seed=seed)
    assert tiled.shape == (ipc, 4 * factor, 4 * factor, 3)
    assert tiled.dtype == np.uint8
    assert [len(names) for names in used] == [factor**2] * ipc
    order = np.random.default_rng(seed).permutation(n)
    shuffled = [images[row] for row in order], [image_ids[row] for row in order]
    again, used_again = rded(*shuffled, brightness, ipc=ipc, factor=factor, size=4 * factor, seed=seed)
    np.testing.assert_array_equal(tiled, again)
    assert used == used_again


def test_best_patches_of_an_image_are_independent_of_others() -> None:
    images, image_ids = photos(10)
    whole = best_patches(images, image_ids, brightness, count=10, side=8, size=8, seed=0)
    for row in range(10):
        alone = best_patches([images[row]], [image_ids[row]], brightness, count=1, side=8, size=8, seed=0)
        np.testing.assert_array_equal(alone.pixels[0], whole.pixels[whole.image_ids.index(image_ids[row])])


def test_best_patches_of_other_seeds_differ() -> None:
    tiled = [rded(*photos(6), brightness, ipc=1, factor=2, size=16, seed=seed)[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(tiled[0], tiled[1])
    assert (tiled[0] != tiled[2]).any()


@pytest.mark.parametrize("factor", [1, 2])
def test_tile_places_patches_as_published(factor: int) -> None:
    """As `mix_images` of RDED: position k (row by row) of image i has patch k * ipc + i."""
    ipc, side = 3, 4
    count = ipc * factor**2
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 3))
    tiled, used = tile(Patches([f"i{k}" for k in range(count)], pixels, np.zeros(count)), factor)
    assert tiled.shape == (ipc, factor * side, factor * side, 3)
    for image in range(ipc):
        places = [k * ipc + image for k in range(factor**2)]
        assert used[image] == [f"i{k}" for k in places]
        blocks = [block for row in np.split(tiled[image], factor) for block in np.split(row, factor, axis=1)]
        for place, block in zip(places, blocks, strict=True):
            assert (block == place).all()


def test_tile_with_factor_1_keeps_patches() -> None:
    images, image_ids = photos(8)
    tiled, used = rded(images, image_ids, brightness, ipc=3, factor=1, size=16, seed=0)
    best = best_patches(images, image_ids, brightness, count=3, side=16, size=16, seed=0)
    np.testing.assert_array_equal(tiled, best.pixels)
    assert used == [[name] for name in best.image_ids]


def test_best_patches_of_a_small_class_take_more_crops_of_each() -> None:
    images, image_ids = photos(3)
    best = best_patches(images, image_ids, brightness, count=7, side=8, size=8, seed=0)
    np.testing.assert_array_equal([padded(patch, 8) for patch in best.pixels], best.scores)
    assert sorted(best.image_ids[:3]) == sorted(best.image_ids[3:6]) == image_ids
    for turn in (slice(0, 3), slice(3, 6)):
        assert (np.diff(best.scores[turn]) >= 0).all()
    for place, (name, score) in enumerate(zip(best.image_ids, best.scores, strict=True)):
        turn = place // 3
        crops = candidates(images[image_ids.index(name)], name, 0, 15, 8)[5 * turn : 5 * turn + 5]
        assert score == pytest.approx(min(padded(crop, 8) for crop in crops), abs=0.5)


def test_best_patches_of_smaller_count_begin_the_larger() -> None:
    results = [best_patches(*photos(5), brightness, count=count, side=8, size=8, seed=0) for count in (1, 5, 12)]
    for fewer in results[:2]:
        count = len(fewer.image_ids)
        assert results[2].image_ids[:count] == fewer.image_ids
        np.testing.assert_array_equal(results[2].pixels[:count], fewer.pixels)


def test_best_patches_come_from_the_pool_only() -> None:
    images, image_ids = photos(40)
    pool = pool_ids(image_ids, seed=5, pool=10)
    assert pool == sorted(pool) == pool_ids(image_ids[::-1], seed=5, pool=10) == pool_ids(pool, seed=5, pool=10)
    assert len(pool) == 10
    assert pool != pool_ids(image_ids, seed=6, pool=10)
    assert pool_ids(image_ids, seed=5) == image_ids
    pooled = [image for image, name in zip(images, image_ids, strict=True) if name in pool]
    tiled, used = rded(images, image_ids, brightness, ipc=2, factor=2, size=16, seed=5, pool=10)
    expected, names = rded(pooled, pool, brightness, ipc=2, factor=2, size=16, seed=5, pool=10)
    np.testing.assert_array_equal(tiled, expected)
    assert used == names
    assert {name for image in used for name in image} <= set(pool)


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**31))
def test_crop_boxes_are_squares_inside_the_image(width: int, height: int, seed: int) -> None:
    boxes = crop_boxes(width, height, 20, np.random.default_rng(seed))
    left, top, side = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (side >= 1).all()
    assert (left + side <= width).all()
    assert (top + side <= height).all()
    np.testing.assert_array_equal(crop_boxes(width, height, 7, np.random.default_rng(seed)), boxes[:7])


@pytest.mark.parametrize(("width", "height"), [(60, 40), (32, 32), (200, 10)])
def test_crop_boxes_are_distributed_as_torchvisions(width: int, height: int) -> None:
    import torch
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    image = torch.zeros(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [1.0, 1.0]) for _ in range(3000)])
    top, left, _, side = theirs.T
    ours = crop_boxes(width, height, 3000, np.random.default_rng(0)).T
    for mine, other in zip(ours, (left, top, side), strict=True):
        assert ks_2samp(mine, other).pvalue > 0.001


def test_crop_boxes_of_a_sliver_are_its_middle() -> None:
    assert crop_boxes(200, 10, 2, np.random.default_rng(0)).tolist() == [[95, 0, 10], [95, 0, 10]]


@pytest.mark.parametrize(
    ("n", "change", "message"),
    [
        (0, {}, "there is no image to take crops from"),
        (2, {"image_ids": ["a", "a"]}, "image_id 'a' occurs twice"),
        (1, {"size": 15}, "size 15 does not divide into 2 x 2 patches: take a multiple of 2"),
        (1, {"score": lambda pixels: np.full(len(pixels), np.nan)}, "image_id 'i000' is not a number"),
    ],
)
def test_rded_of_unusable_input_is_refused(n: int, change: dict[str, object], message: str) -> None:
    images, image_ids = photos(n)
    arguments = {"images": images, "image_ids": image_ids, "score": brightness, "ipc": 1, "factor": 2, "size": 16}
    with pytest.raises(ValueError, match=message):
        rded(**{**arguments, "seed": 0, **change})  # type: ignore[arg-type]


def test_best_patches_with_ties_go_to_the_first_image_and_crop() -> None:
    images, image_ids = photos(3)
    best = best_patches(images, image_ids, lambda pixels: np.zeros(len(pixels)), count=5, side=8, size=8, seed=0)
    assert best.image_ids == ["i000", "i001", "i002", "i000", "i001"]
    for place, (image_id, patch) in enumerate(zip(best.image_ids, best.pixels, strict=True)):
        crops = candidates(images[image_ids.index(image_id)], image_id, 0, 10, 8)
        first = crops[5 * (place // 3)].astype(int)  # the first of five crops in each turn
        assert np.abs(patch.astype(int) - first).max() <= 1


def test_select_images_takes_the_crops_of_the_lowest_cross_entropy() -> None:
    import torch

    class Brightness(torch.nn.Module):
        """Logits of two classes: zero, and the mean of the normalised pixels."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            values = images.mean((1, 2, 3))
            return torch.stack([torch.zeros_like(values), values], 1)

    images, image_ids = photos(6)
    columns = {"image_id": image_ids, "label": [1] * 6, "class_name": ["bright"] * 6}
    rows = pa.table(columns | {"image": [encode_png(image) for image in images]})
    job = load_job("jobs/digits-compare.toml", ["evaluate.factor=2", "generate.image_size=16"])
    sets = method.select_images(rows, [(0, 1), (0, 2), (4, 1)], Brightness().eval(), job, "cpu")
    mean, std = (np.array(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def loss(pixels: Pixels) -> npt.NDArray[np.float64]:
        return np.log1p(np.exp(-((pixels / 255 - mean) / std).mean(axis=(1, 2, 3))))

    for (seed, ipc), table in sets.items():
        expected, _ = rded(images, image_ids, loss, ipc=ipc, factor=2, size=16, seed=seed)
        np.testing.assert_array_equal([np.asarray(decode(data)) for data in table["image"].to_pylist()], expected)
        assert table["image_id"].to_pylist() == ["rded-0001-0000", "rded-0001-0001"][:ipc]
        assert table.drop_columns(["image_id", "image"]).to_pylist() == ipc * [
            {"label": 1, "class_name": "bright", "split": "train", "prototype_id": "", "text": "", "seed": seed}
        ]
    assert set(sets) == {(0, 1), (0, 2), (4, 1)}


def test_select_images_with_a_trained_teacher_takes_the_crops_of_published_rded() -> None:
    """On digits, with a teacher that knows them: of five crops of an image the one of the lowest cross entropy, each
    in the middle of a frame of the mean colour; then the best ipc x 4 images; image i has the i-th, (ipc + i)-th ... of
    them row by row (synthesize/ of LINs-lab/RDED). Crops are cut by torchvision, scores summed from log-softmax."""
    import torch

    from vlcp_ray.config import Teach
    from vlcp_ray.models.teacher import load_teacher
    from vlcp_ray.stages.teach.train import train_teacher

    small = Teach(network="ConvNet-3", width=16, input_size=16, epochs=6, batch_size=32, validations=1, flip=False)
    trained = train_teacher(labelled_digits(0, 400), labelled_digits(1000, 1200), NAMES, small, 0, "cpu")
    assert trained.top1 > 0.8
    teacher = load_teacher(small, trained.state)
    own = labelled_digits(400, 800)
    images = [image.transpose(1, 2, 0) for image, label in zip(own.pixels, own.labels, strict=True) if label == 5]
    image_ids = [f"i{number:03d}" for number in range(len(images))]
    columns = {"image_id": image_ids, "label": [5] * len(images), "class_name": ["five"] * len(images)}
    rows = pa.table(columns | {"image": [encode_png(np.ascontiguousarray(image)) for image in images]})
    job = load_job("jobs/digits-compare.toml", ["evaluate.factor=2", "generate.image_size=16"])
    ipc, side, slack = 4, 8, 0.05  # Pillow and torchvision round by up to one level of 255
    table = method.select_images(rows, [(1, ipc)], teacher, job, "cpu")[1, ipc]
    made = np.stack([np.asarray(decode(data)) for data in table["image"].to_pylist()])
    tiles = made.reshape(ipc, 2, side, 2, side, 3).transpose(1, 3, 0, 2, 4, 5).reshape(-1, side, side, 3)

    mean, std = (np.array(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def cross_entropy(patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        frames = np.full((len(patches), 3, 16, 16), np.array(PADDING, np.float64)[:, None, None])
        frames[:, :, 4:12, 4:12] = patches.transpose(0, 3, 1, 2)
        with torch.inference_mode():
            logits = teacher(torch.tensor((frames / 255 - mean) / std, dtype=torch.float32)).double().numpy()
        peak = logits.max(axis=1)
        result: npt.NDArray[np.float64] = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1)) - logits[:, 5]
        return result

    crops = np.stack([candidates(image, name, 1, 5, side) for image, name in zip(images, image_ids, strict=True)])
    scores = cross_entropy(crops.reshape(-1, side, side, 3)).reshape(len(images), 5)
    best = np.sort(scores.min(axis=1))[: 4 * ipc]
    assert best[0] + 1 < np.median(scores)  # the teacher tells the crops apart
    np.testing.assert_allclose(cross_entropy(tiles), best, atol=slack)
    order = np.argsort(scores.min(axis=1))
    for place, tile_ in enumerate(tiles):
        near = [row for row in order if abs(scores[row].min() - best[place]) <= slack]
        views = np.concatenate([crops[row][scores[row] <= scores[row].min() + slack] for row in near]).astype(int)
        assert np.abs(views - tile_.astype(int)).max(axis=(1, 2, 3)).min() <= 1


def test_loads_are_a_pass_of_the_teacher_for_each_crop_of_each_seed() -> None:
    job = load_job("jobs/digits-compare.toml")
    images = Expect(train=1000, val=100, classes=7, gib=1)
    inputs = CostInputs.for_job(job, images)
    steps = [step for step in graph(job) if step.stage == "select" and step.key["method"] == "rded"]
    (load,) = method.METHOD.loads(inputs, steps)
    teach = job.teach
    each = inputs.models.classify(teach.network[0], teach.input_size, teach.width, 7, "batch")
    assert load.amount == 3 * 7 * 300 * 5 * each > 0  # seeds, classes, images of a class, crops of each
    assert load.units == 7
