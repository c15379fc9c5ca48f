"""report: everything that a job has made -> one self-contained HTML page; coverage and neighbours of distilled sets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from vlcp_ray.schemas import column
from vlcp_ray.stages import generate, ingest, prototype
from vlcp_ray.stages.stage import Load, Stage

if TYPE_CHECKING:
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step

#: How real and synthetic images are compared: the side in pixels that both are resized to, and among how many nearest
#: images of a real one a synthetic one covers it.
COMPARED_AT: Final[Mapping[str, int]] = {"side": 32, "nearest": 5}
_SET: Final = [
    column("method", pa.string(), "how the set was made, such as vlcp or random"),
    column("ipc", pa.int32(), "images per class"),
    column("seed", pa.int32(), "the seed of the distilled set"),
    column("label", pa.int32(), "the class, as in IMAGES"),
]
_SPREAD: Final = column("spread", pa.float64(), "mean distance of a real image to the nearest other one of its class")
COVERAGE: Final = pa.schema(
    [
        *_SET,
        column("real", pa.int32(), "number of training images of the class"),
        column("synthetic", pa.int32(), "number of images of the class in the set"),
        column("covered", pa.int32(), "number of real images with a synthetic one among their 5 nearest"),
        _SPREAD,
        column("to_real", pa.float64(), "mean distance of a synthetic image to the nearest real one"),
        column("to_synthetic", pa.float64(), "mean distance of a synthetic image to the nearest other synthetic one"),
        column("redundant", pa.int32(), "number of synthetic images that are nearer to another one than to a real one"),
    ]
)
NEIGHBOURS: Final = pa.schema(
    [
        *_SET,
        column("image_id", pa.string(), "id of the synthetic image"),
        column("real_image_id", pa.string(), "id of the training image of its class that is nearest to it"),
        column("distance", pa.float64(), "between the two at 32 x 32 pixels: root mean square, 1 is black to white"),
        _SPREAD,
    ]
)


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    """Yield the load of decoding all images once more, on the workers that cluster classes."""
    sets = [step for page in steps for step in page.inputs.values() if "method" in step.key and "ipc" in step.key]
    made = [step for step in sets if "set" not in step.inputs]
    count = inputs.images.train + generate.count_images(inputs, made) if made else 0
    if count:
        yield Load(ingest.READ, count, count, units=inputs.images.classes, pool=prototype.STAGE.pools[0])


STAGE: Final = Stage(
    "report",
    version=4,
    summary="everything -> one HTML page",
    tables={"coverage": COVERAGE, "neighbours": NEIGHBOURS},
    files=("index.html",),
    rows="artifacts read",
    loads=_loads,
)
