"""Knows the ways of making a small set that choose real images instead of drawing new ones."""

from collections import defaultdict

import numpy as np
import pyarrow as pa

from vlcp_ray import images
from vlcp_ray.schemas import SYNTHETIC, conform, with_column
from vlcp_ray.seeds import seed_for


def random_ids(index: pa.Table, seed: int, ipc: int) -> list[str]:
    """The ids of `ipc` random images of every class.

    An image's place in the draw depends on its own id alone, so order and sharding change nothing, and the draw for
    a smaller ipc is part of the draw for a larger one.

    Args:
        index: columns image_id and class_name of all candidates.

    Raises:
        ValueError: a class has fewer images than `ipc`.
    """
    classes: dict[str, list[str]] = defaultdict(list)
    for image_id, class_name in zip(index["image_id"].to_pylist(), index["class_name"].to_pylist(), strict=True):
        classes[class_name].append(image_id)
    chosen: list[str] = []
    for class_name, image_ids in sorted(classes.items()):
        if len(image_ids) < ipc:
            raise ValueError(f"class {class_name!r} has {len(image_ids)} training images, ipc {ipc} needs more")
        chosen += sorted(image_ids, key=lambda image_id: seed_for(seed, "random", image_id))[:ipc]
    return chosen


def as_synthetic(table: pa.Table) -> pa.Table:
    """Rows of IMAGES as rows of SYNTHETIC: the same pixels as PNG, drawn from no prototype."""
    pngs = [images.encode_png(np.asarray(images.decode(data))) for data in table["image"].to_pylist()]
    columns = {"image": pngs, "prototype_id": [""] * len(table), "text": [""] * len(table), "seed": [0] * len(table)}
    for name, values in columns.items():
        table = with_column(table, name, pa.array(values, SYNTHETIC.field(name).type))
    return conform(table, SYNTHETIC)
