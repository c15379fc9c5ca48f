"""herding: real images whose mean feature is nearest to the mean feature of the class."""

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


def herding(features: npt.NDArray[np.float32], ipc: int) -> list[int]:
    """Select rows one by one: always the row that brings the mean of the selection nearest to the mean of the class.

    Welling 2009, as DC's authors do it (VICO-UoE/DatasetCondensation, issue 15): features are not
    normalised. Takes O(ipc * n * d). A smaller ipc gives the first rows of a larger one.

    Args:
        features: (n, d), a row for each image of one class, sorted by image_id.
        ipc: number of rows to select.

    Returns:
        `ipc` different row numbers in the order of selection; ties go to the first row.

    Raises:
        ValueError: there are fewer rows than `ipc`, or features that are not finite.
    """
    rows = check_features(features, ipc)
    # Everything is multiplied by n: without a division by n, ties of whole-numbered features stay ties.
    total, rows = rows.sum(axis=0), rows * len(rows)
    free = np.ones(len(rows), dtype=bool)
    selected_sum = np.zeros_like(total)
    selected: list[int] = []
    for count in range(1, ipc + 1):
        # |mean - (selected_sum + row) / count| is smallest where row is nearest to count * mean - selected_sum.
        distances = squared_distances(rows, count * total - selected_sum)
        row = int(np.where(free, distances, np.inf).argmin())
        free[row] = False
        selected_sum += rows[row]
        selected.append(row)
    return selected


def select_images(
    rows: "pa.Table", runs: Sequence[Run], teacher: "nn.Module", job: "Job", device: str
) -> dict[Run, "pa.Table"]:
    """Make the sets of one class (see `coreset.select_by_features`)."""
    return select_by_features(herding, rows, runs, teacher, job, device)


METHOD: Final = Method(
    "herding",
    "real images whose mean feature is nearest to that of the class",
    "Welling 2009, as in Dataset Condensation",
    "class",
    ("images", "teacher"),
    code="vlcp_ray.methods.herding:select_images",
    loads=feature_loads,
)
