"""rded: the crops of real images with the lowest loss of the teacher, tiled into new images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from vlcp_ray.images import Pixels, decode
from vlcp_ray.methods.method import Method, Run
from vlcp_ray.methods.synthetic_rows import from_pixels
from vlcp_ray.models.networks import TEACHER_NORM
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages import evaluate, generate
from vlcp_ray.stages.stage import Load

if TYPE_CHECKING:
    from torch import nn

    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.models.batches import Batches
    from vlcp_ray.store.artifact import Step

Score: TypeAlias = Callable[[Pixels], npt.NDArray[np.floating[Any]]]

# RDED's published code (LINs-lab/RDED, synthesize/utils.py) cuts with torchvision's RandomResizedCrop(size // factor,
# ratio=(1, 1)): squares of 8 to 100 % of the image's area, torchvision's own default, not the student's scale of
# RDED: its published commands take 5 crops of each of 300 images (--num-crop 5 --mipc 300).
CROPS, POOL = 5, 300
SCALE: Final = (0.08, 1.0)
_ATTEMPTS: Final = 10

#: The colour around a patch while it is scored: zero after normalisation with ImageNet's mean, as RDED pads.
PADDING: Final = (124, 116, 104)
_BATCH: Final = 256  # patches per forward pass of the teacher; 154 MB of float32 at 224 pixels


@dataclass(frozen=True)
class Patches:
    """Crops of real images, the best first."""

    image_ids: list[str]  # (n,)
    pixels: Pixels  # (n, side, side, 3)
    scores: npt.NDArray[np.floating[Any]]  # (n,)

    def first(self, count: int) -> "Patches":
        """Return the best `count` patches: those that `best_patches` returns for this count."""
        return Patches(self.image_ids[:count], self.pixels[:count], self.scores[:count])


def rded(
    images: Sequence[Pixels],
    image_ids: Sequence[str],
    score: Score,
    *,
    ipcs: Sequence[int],
    factor: int,
    size: int,
    seed: int,
    crops: int = CROPS,
    pool: int = POOL,
) -> dict[int, tuple[Pixels, list[list[str]]]]:
    """Make RDED's images of one class (Sun et al. 2024; see `best_patches` and `tile`).

    Args:
        images: (h, w, 3) uint8, as many as `image_ids`, in any order, of any size. Only those that `pool_ids`
            returns are used.
        image_ids: all different.
        score: takes (n, 3, size, size) uint8 and returns (n,), lower is better: the teacher's cross entropy against
            the label of the class. Each score must depend on its own image alone (a network in eval mode).
        ipcs: numbers of images, a set for each; the best crops are computed once for all of them.
        factor: an image has factor x factor patches.
        size: height and width of the returned images in pixels, a multiple of `factor`.
        seed: of the distilled set.
        crops: random crops of each image, of which the one with the lowest score is kept.
        pool: maximum number of images whose crops are scored.

    Returns:
        For each ipc the images (ipc, size, size, 3) uint8, and for each image the image_ids of its patches, row by row.
        The result depends on the set of images and the seed, not on the order of the images.

    Raises:
        ValueError: there is no image, an image_id occurs twice, a score is not a number, or `size` is not a multiple of
            `factor`.
    """
    if size % factor:
        raise ValueError(f"size {size} does not divide into {factor} x {factor} patches: take a multiple of {factor}")
    best = best_patches(
        images,
        image_ids,
        score,
        count=max(ipcs) * factor**2,
        side=size // factor,
        size=size,
        seed=seed,
        crops=crops,
        pool=pool,
    )
    return {ipc: tile(best.first(ipc * factor**2), factor) for ipc in ipcs}


def pool_ids(image_ids: Sequence[str], seed: int, pool: int = POOL) -> list[str]:
    """Return the sorted ids of the images whose crops are scored: `pool` random ones, or all if there are no more.

    Called on its own result it returns the same ids, so a caller needs to read only these images.
    """
    return sorted(sorted(image_ids, key=lambda image_id: seed_for(seed, "rded pool", image_id))[:pool])


def best_patches(
    images: Sequence[Pixels],
    image_ids: Sequence[str],
    score: Score,
    *,
    count: int,
    side: int,
    size: int,
    seed: int,
    crops: int = CROPS,
    pool: int = POOL,
) -> Patches:
    """Take the best (lowest score) of some random crops of each image, and return the best `count` of these.

    If there are fewer images than `count`, which RDED's code does not provide for, each image gives a second patch, the
    best of the same number of new crops, then a third. All images give their second patch before any gives its third,
    so that a smaller count returns the first patches of a larger one.

    Args:
        images, image_ids, score, seed, crops, pool: as in `rded`.
        count: patches to return.
        side: height and width of a patch in pixels.
        size: height and width of a scored image in pixels, a patch in the middle of mean grey.

    Returns:
        `count` patches: the first patches of all images, the best first, then their second patches; ties go to the
        smaller image_id, and within an image to the crop that was sampled first.

    Raises:
        ValueError: there is no image, an image_id occurs twice or a score is not a number.
    """
    _check_image_ids(image_ids)
    pooled = pool_ids(image_ids, seed, pool)
    rows = {image_id: row for row, image_id in enumerate(image_ids)}
    rounds = -(-count // len(pooled))
    cut = np.stack(
        [
            _random_crops(images[rows[image_id]], seed_for(seed, "rded", image_id), rounds * crops, side)
            for image_id in pooled
        ]
    )  # (n, rounds * crops, side, side, 3)
    scores = _score_padded(cut.reshape(-1, side, side, 3), score, size).reshape(len(pooled), rounds, crops)
    if np.isnan(scores).any():
        first = pooled[int(np.isnan(scores).any(axis=(1, 2)).argmax())]
        raise ValueError(
            f"the teacher's score of a crop of image_id {first!r} is not a number: train the teacher again"
        )
    lowest = scores.min(axis=2)  # (n, rounds)
    image, turn = (index.ravel() for index in np.indices(lowest.shape))
    order = np.lexsort((image, lowest.ravel(), turn))[:count]
    image, turn = image[order], turn[order]
    crop = turn * crops + scores.argmin(axis=2)[image, turn]
    return Patches([pooled[row] for row in image], cut[image, crop], lowest[image, turn])


def tile(patches: Patches, factor: int) -> tuple[Pixels, list[list[str]]]:
    """Tile patches into images of factor x factor: image i of n takes every n-th patch from the i-th on, row by row.

    So the top left patch of each image is one of the n best, and its last patch is one of the n worst (`mix_images` in
    RDED's code).

    Args:
        patches: n * factor^2 patches, the best first.
        factor: patches per row and per column.

    Returns:
        (n, factor * side, factor * side, 3) uint8, and the image_ids of the patches of each image.
    """
    n, side = len(patches.image_ids) // factor**2, patches.pixels.shape[1]
    grid = patches.pixels.reshape(factor, factor, n, side, side, 3)
    tiled = grid.transpose(2, 0, 3, 1, 4, 5).reshape(n, factor * side, factor * side, 3)
    return tiled, [patches.image_ids[i::n] for i in range(n)]


def crop_boxes(width: int, height: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sample the boxes of torchvision's RandomResizedCrop with ratio (1, 1).

    Each box is the first of ten candidates that fits into the image, or the largest square in the middle if none does.
    With the same generator, a smaller `count` returns the first boxes of a larger one.

    Args:
        width, height: of the image in pixels.
        count: number of boxes.
        rng: source of the random numbers.

    Returns:
        (count, 3) int64: left, top and side in pixels.
    """
    random = rng.random((count, _ATTEMPTS, 3))  # area, left, top
    low, high = SCALE
    sides = np.rint(np.sqrt(width * height * (low + (high - low) * random[..., 0])))
    fits = (sides > 0) & (sides <= min(width, height))
    any_fits, first = fits.any(axis=1), fits.argmax(axis=1)
    side = np.where(any_fits, sides[np.arange(count), first], min(width, height))
    room = np.array([width, height]) - side[:, None]  # (count, 2)
    corner = np.floor(random[np.arange(count), first, 1:] * (room + 1))
    corner = np.where(any_fits[:, None], corner, room // 2)
    return np.column_stack([corner, side]).astype(np.int64)


def _random_crops(pixels: Pixels, seed: int, count: int, side: int) -> Pixels:
    """Cut random crops of one image and resize each, from the pixels of its box alone: -> (count, side, side, 3)."""
    image = Image.fromarray(pixels)
    boxes = crop_boxes(image.width, image.height, count, np.random.default_rng(seed))
    views = [image.crop((left, top, left + length, top + length)) for left, top, length in boxes.tolist()]
    return np.stack([np.asarray(view.resize((side, side), Image.Resampling.BILINEAR)) for view in views])


def _score_padded(patches: Pixels, score: Score, size: int) -> npt.NDArray[np.floating[Any]]:
    """Score patches at their own size, each in the middle of mean grey: (n, side, side, 3) -> (n,)."""
    side = patches.shape[1]
    start = (size - side) // 2
    inside = slice(start, start + side)
    scores = []
    for first in range(0, len(patches), _BATCH):
        batch = patches[first : first + _BATCH].transpose(0, 3, 1, 2)
        padded = np.empty((len(batch), 3, size, size), dtype=np.uint8)
        padded[:] = np.array(PADDING, dtype=np.uint8)[:, None, None]
        padded[:, :, inside, inside] = batch
        scores.append(score(padded))
    return np.concatenate(scores)


def _check_image_ids(image_ids: Sequence[str]) -> None:
    if not image_ids:
        raise ValueError("there is no image to take crops from: add images to the class or leave the class out")
    for image_id, following in pairwise(sorted(image_ids)):
        if image_id == following:
            raise ValueError(f"image_id {image_id!r} occurs twice: give each image its own")


def select_images(
    rows: pa.Table, runs: Sequence[Run], teacher: "nn.Module", job: "Job", device: str
) -> dict[Run, pa.Table]:
    """Make the sets of one class; the best crops of a seed are computed once for all ipc of that seed.

    Args:
        rows: IMAGES of the class, sorted by image_id.
        runs: the wanted (seed, ipc).
        teacher: the network that scores the crops, in eval mode.
        job: settings of the patches and of the image size.
        device: torch device of the teacher.
    """
    from vlcp_ray.models.batches import Batches

    label, name = rows["label"][0].as_py(), rows["class_name"][0].as_py()
    image_ids = rows["image_id"].to_pylist()
    batches = Batches(_BATCH, "teach.input_size")
    sets: dict[Run, pa.Table] = {}
    for seed in sorted({seed for seed, _ in runs}):
        pool = pool_ids(image_ids, seed)
        indices = pa.array([image_ids.index(image_id) for image_id in pool], pa.int64())
        tiled = rded(
            [np.asarray(decode(data)) for data in rows["image"].take(indices).to_pylist()],
            pool,
            lambda batch: _cross_entropy(teacher, batch, label, device, batches),
            ipcs=[ipc for s, ipc in runs if s == seed],
            factor=job.evaluate.factor,
            size=job.generate.image_size,
            seed=seed,
        )
        for ipc, (pixels, _) in tiled.items():
            sets[seed, ipc] = from_pixels("rded", [(label, name)] * ipc, range(ipc), pixels, seed)
    return sets


def _cross_entropy(
    teacher: "nn.Module", batch: Pixels, label: int, device: str, batches: "Batches"
) -> npt.NDArray[np.float32]:
    """Compute the teacher's cross entropy against the class: (n, 3, s, s) uint8 -> (n,) float32."""
    import torch
    from torch.nn.functional import cross_entropy

    from vlcp_ray.protocols.augment import normalise

    def score(rows: range, _: int) -> torch.Tensor:
        logits = teacher(normalise(torch.tensor(batch[rows.start : rows.stop], device=device)))
        target = torch.full((len(logits),), label, device=device)
        return cross_entropy(logits.float(), target, reduction="none").cpu()

    with torch.inference_mode():
        parts = list(batches.run(len(batch), score))
    scores: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return scores


def _settings(job: "Job", base_model: str) -> dict[str, Any]:
    recipe = {"crops": CROPS, "pool": POOL, "crop_scale": SCALE, "padding": PADDING}
    return {"image_size": job.generate.image_size, "factor": job.evaluate.factor, **recipe}


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    teach, classes = inputs.job.teach, inputs.images.classes
    crops = CROPS * POOL * classes * len({step.key["seed"] for step in steps})
    each = inputs.models.classify(teach.network[0], teach.input_size, teach.width, classes, TEACHER_NORM)
    yield Load(evaluate.CLASSIFY, generate.count_images(inputs, steps), crops * each, units=classes)


METHOD: Final = Method(
    "rded",
    "the crops of real images with the lowest loss of the teacher, tiled into new images",
    "On the Diversity and Realism of Distilled Dataset (Sun et al. 2024)",
    "class",
    ("images", "teacher"),
    code="vlcp_ray.methods.rded:select_images",
    settings=_settings,
    loads=_loads,
)
