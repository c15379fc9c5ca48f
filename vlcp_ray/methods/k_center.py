"""k-center: real images that leave no image of the class far away in feature space."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vlcp_ray.methods.coreset import check_features, feature_loads, select_by_features, squared_distances
from vlcp_ray.methods.herding import herding
from vlcp_ray.methods.method import Method, Run

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from vlcp_ray.config import Job


def k_center(features: npt.NDArray[np.float32], ipc: int) -> list[int]:
    """Select the row nearest to the mean, then, one by one, the row that is farthest from all selected rows.

    The greedy algorithm of Sener and Savarese 2018, with the first row of DC's authors
    (VICO-UoE/DatasetCondensation, issue 21). Takes O(ipc * n * d). A smaller ipc gives the first rows of a larger one.

    Args:
        features: (n, d), a row for each image of one class, sorted by image_id.
        ipc: number of rows to select.

    Returns:
        `ipc` different row numbers in the order of selection; ties go to the first row.

    Raises:
        ValueError: there are fewer rows than `ipc`, or features that are not finite.
    """
    rows = check_features(features, ipc)
    selected = herding(features, min(ipc, 1))  # its first row is the row nearest to the mean
    nearest = np.full(len(rows), np.inf)
    while len(selected) < ipc:
        nearest = np.minimum(nearest, squared_distances(rows, rows[selected[-1]]))
        nearest[selected[-1]] = -1  # lower than that of a row equal to it: no image is selected twice
        selected.append(int(nearest.argmax()))
    return selected


def select_images(
    rows: "pa.Table", runs: Sequence[Run], teacher: "nn.Module", job: "Job", device: str
) -> dict[Run, "pa.Table"]:
    """Make the sets of one class (see `coreset.select_by_features`)."""
    return select_by_features(k_center, rows, runs, teacher, job, device)


METHOD: Final = Method(
    "k-center",
    "real images that leave no image of the class far away in feature space",
    "Sener and Savarese 2018, as in Dataset Condensation",
    "class",
    ("images", "teacher"),
    code="vlcp_ray.methods.k_center:select_images",
    loads=feature_loads,
)
