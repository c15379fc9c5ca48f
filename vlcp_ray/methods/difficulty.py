"""el2n and forgetting: the real images that are most difficult for early networks."""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.methods import random_images
from vlcp_ray.methods.method import Method
from vlcp_ray.seeds import seed_for


def el2n_ids(index: pa.Table, seed: int, ipc: int) -> list[str]:
    """Select the images of every class with the largest mean EL2N over the networks, as published (Paul et al. 2021).

    Args:
        index: DIFFICULTY.
        seed: of the set: it decides between images with equal scores.
        ipc: images per class.

    Returns:
        Their ids; a smaller ipc gives some of those of a larger one.

    Raises:
        ValueError: a class has fewer images than `ipc`.
    """
    return _hardest(index, index["el2n"], seed, ipc)


def forgetting_ids(index: pa.Table, seed: int, ipc: int) -> list[str]:
    """Select the images of every class that are forgotten most often, as published (Toneva et al. 2019).

    An image that a network never classifies rightly counts as forgotten more often than any other.

    Args:
        index, seed, ipc: as in `el2n_ids`.
    """
    counts = index["forgettings"]
    most = pc.add(pc.max(counts), 1)
    return _hardest(index, pc.if_else(pc.less(counts, 0), most, counts), seed, ipc)


def _hardest(index: pa.Table, scores: pa.ChunkedArray, seed: int, ipc: int) -> list[str]:
    """Select the images of every class whose scores, added up over the networks, are largest."""
    rows = index.select(["class_name", "image_id", "network"]).append_column("score", pc.cast(scores, pa.float64()))
    order = [("class_name", "ascending"), ("image_id", "ascending"), ("network", "ascending")]
    grouped = rows.sort_by(order).group_by(["class_name", "image_id"], use_threads=False)  # a sum depends on the order
    totals = grouped.aggregate([("score", "sum")])
    selected: list[str] = []
    for class_name in sorted(pc.unique(totals["class_name"]).to_pylist()):
        own = totals.filter(pc.equal(totals["class_name"], class_name)).sort_by([("score_sum", "descending")])
        if len(own) < ipc:
            raise ValueError(
                f"class {class_name!r} has {len(own)} training images, fewer than ipc = {ipc}: "
                "lower ipc or add images to the class"
            )
        candidates = own.filter(pc.greater_equal(own["score_sum"], own["score_sum"][ipc - 1]))
        total = dict(zip(candidates["image_id"].to_pylist(), candidates["score_sum"].to_pylist(), strict=True))
        ranked = sorted(total, key=lambda image_id: (-total[image_id], seed_for(seed, "ties", image_id)))
        selected += ranked[:ipc]
    return selected


EL2N: Final = Method(
    "el2n",
    "the real images on which early networks err most",
    "Deep Learning on a Data Diet (Paul et al. 2021)",
    "ids",
    ("images", "difficulty"),
    code="vlcp_ray.methods.difficulty:el2n_ids",
    loads=random_images.METHOD.loads,
)
FORGETTING: Final = Method(
    "forgetting",
    "the real images that networks most often classify wrongly after they classified them rightly",
    "An Empirical Study of Example Forgetting (Toneva et al. 2019)",
    "ids",
    ("images", "difficulty"),
    code="vlcp_ray.methods.difficulty:forgetting_ids",
    loads=random_images.METHOD.loads,
)
