"""random: real images, selected at random in every class."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from vlcp_ray.methods.method import Method
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages import generate, ingest
from vlcp_ray.stages.stage import Load

if TYPE_CHECKING:
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step


def random_ids(index: pa.Table, seed: int, ipc: int) -> list[str]:
    """Select `ipc` random images of every class and return their ids.

    The rank of an image depends on its own id alone, so order and sharding change nothing, and the images for a
    smaller ipc are among those for a larger one.

    Args:
        index: columns image_id and class_name of all candidates.
        seed: of the distilled set.
        ipc: images per class.

    Raises:
        ValueError: a class has fewer images than `ipc`.
    """
    classes: dict[str, list[str]] = defaultdict(list)
    for image_id, class_name in zip(index["image_id"].to_pylist(), index["class_name"].to_pylist(), strict=True):
        classes[class_name].append(image_id)
    selected: list[str] = []
    for class_name, image_ids in sorted(classes.items()):
        if len(image_ids) < ipc:
            raise ValueError(
                f"class {class_name!r} has {len(image_ids)} training images, fewer than ipc = {ipc}: "
                "lower ipc or add images to the class"
            )
        selected += sorted(image_ids, key=lambda image_id: seed_for(seed, "random", image_id))[:ipc]
    return selected


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    count = generate.count_images(inputs, steps)
    yield Load(ingest.READ, count, count, units=count)  # read and written


METHOD: Final = Method(
    "random",
    "real images selected at random",
    "the usual baseline",
    "ids",
    ("images",),
    code="vlcp_ray.methods.random_images:random_ids",
    loads=_loads,
)
