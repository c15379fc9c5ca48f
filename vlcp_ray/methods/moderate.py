"""moderate: real images that are as far from the middle of their class as most are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vlcp_ray.methods.coreset import check_features, feature_loads, select_by_features, squared_distances
from vlcp_ray.methods.method import Method, Run

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from vlcp_ray.config import Job


def moderate(features: npt.NDArray[np.float32], ipc: int) -> list[int]:
    """Select the rows whose distance to the mean of the class is nearest to the median distance (Xia et al. 2023).

    A smaller ipc gives the first rows of a larger one.

    Args:
        features: (n, d), a row for each image of one class, sorted by image_id.
        ipc: number of rows to select.

    Returns:
        `ipc` different row numbers, the nearest to the median first; ties go to the first row.

    Raises:
        ValueError: there are fewer rows than `ipc`, or features that are not finite.
    """
    rows = check_features(features, ipc)
    distances = np.sqrt(squared_distances(rows, rows.mean(axis=0)))
    order: list[int] = np.argsort(np.abs(distances - np.median(distances)), kind="stable")[:ipc].tolist()
    return order


def select_images(
    rows: "pa.Table", runs: Sequence[Run], teacher: "nn.Module", job: "Job", device: str
) -> dict[Run, "pa.Table"]:
    """Make the sets of one class (see `coreset.select_by_features`)."""
    return select_by_features(moderate, rows, runs, teacher, job, device)


METHOD: Final = Method(
    "moderate",
    "real images whose features are as far from the mean of their class as the median image",
    "Moderate Coreset (Xia et al. 2023)",
    "class",
    ("images", "teacher"),
    code="vlcp_ray.methods.moderate:select_images",
    loads=feature_loads,
)
