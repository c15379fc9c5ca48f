"""Selection of real images by their features from the teacher: what herding and k-center share."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlcp_ray.methods.method import Run
from vlcp_ray.models.networks import TEACHER_NORM
from vlcp_ray.stages import evaluate, generate
from vlcp_ray.stages.stage import Load

if TYPE_CHECKING:
    from torch import nn

    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step

Floats: TypeAlias = npt.NDArray[np.floating[Any]]

# Distances are sums of squared differences, row by row: a product with a matrix (|x|^2 - 2 xy + |y|^2) is faster, but
# its rounding depends on the position of a row, so that the first of two equal images would not always be nearest.


def select_by_features(
    select_rows: Callable[[npt.NDArray[np.float32], int], list[int]],
    rows: pa.Table,
    runs: Sequence[Run],
    teacher: "nn.Module",
    job: "Job",
    device: str,
) -> dict[Run, pa.Table]:
    """Make the sets of one class. A smaller set is the beginning of a larger one, and sets of all seeds are equal.

    Args:
        select_rows: takes features (n, d) and a number, returns that many row numbers, the most important first.
        rows: IMAGES of the class, sorted by image_id.
        runs: the wanted (seed, ipc).
        teacher: the network that computes the features.
        job: settings of the teacher.
        device: torch device.
    """
    from vlcp_ray import images
    from vlcp_ray.methods.synthetic_rows import as_synthetic
    from vlcp_ray.models.teacher import features

    size = job.teach.input_size
    pixels = np.empty((len(rows), 3, size, size), np.uint8)
    for target, data in zip(pixels, rows["image"], strict=True):
        target[:] = images.center_crop(images.decode(data.as_py()), size).transpose(2, 0, 1)
    selected = select_rows(features(teacher, pixels, device), max(ipc for _, ipc in runs))
    return {run: as_synthetic(rows.take(pa.array(selected[: run[1]], pa.int64()))) for run in runs}


def feature_loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    """Yield the load of computing the features of every training image once."""
    teach, images = inputs.job.teach, inputs.images
    each = inputs.models.classify(teach.network[0], teach.input_size, teach.width, images.classes, TEACHER_NORM)
    count = generate.count_images(inputs, steps)
    yield Load(evaluate.CLASSIFY, count, images.train * each, units=images.classes)


def check_features(features: Floats, ipc: int) -> npt.NDArray[np.float64]:
    """Check the features and return them in double precision.

    Raises:
        ValueError: there are fewer rows than `ipc`, or features that are not finite.
    """
    if len(features) < ipc:
        raise ValueError(f"{len(features)} images are fewer than ipc = {ipc}: lower ipc or add images to the class")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(f"the features of row {int(finite.argmin())} are not finite: train the teacher again")
    return features.astype(np.float64)


def squared_distances(rows: npt.NDArray[np.float64], point: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the squared distance of every row to a point: (n, d) and (d,) -> (n,)."""
    distances: npt.NDArray[np.float64] = np.square(rows - point).sum(axis=1)
    return distances
