"""prototype: PAIRS -> PROTOTYPES + MEMBERS, one class at a time."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field

from vlcp_ray.schemas import column
from vlcp_ray.settings import Positive, Settings
from vlcp_ray.stages.stage import Load, Stage, Work

if TYPE_CHECKING:
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step

#: Assumed Lloyd iterations of one k-means run. ImageNet's classes at 512 px take 10 to 30.
_ITERATIONS: Final = 20


class Prototype(Settings):
    """Clustering of each class into image and text prototypes."""

    contamination: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="share of images removed as outliers by the local outlier factor (LOF); 0: none"
    )
    n_neighbors: Positive = Field(10, description="number of neighbours that LOF compares an image with")
    n_init: Positive = Field(10, description="random initialisations of k-means; the best is kept")
    max_df: Annotated[float, Field(gt=0, le=1)] = Field(
        0.7, description="drop words that at least this share of a class's captions contain (beta of the paper)"
    )
    n_words: Positive = Field(30, description="representative words kept per cluster")
    matching: Literal["word", "substring"] = Field(
        "word",
        description="word: words are runs of letters, so that both words of top-heavy count, and are found as whole "
        "words; substring: as the released code, words are nltk's tokens of letters, top-heavy is none, and are found "
        "within others. Both leave out nltk's stop words, which unlike scikit-learn's keep thin, thick, top, side",
    )


@dataclass(frozen=True)
class Recipe:
    """Constants of the choice of text prototypes, which no setting changes.

    A caption with more characters than both limits is very long. 120 tokens of LLaVA have about 600 characters; where
    it repeats itself to the end, 1,024 have about 5,000.

    Args:
        long: the first limit, about four slices of 77 tokens.
        times_median: the second limit, in medians of the captions of a class.
    """

    long: int = 1_500
    times_median: int = 4


RECIPE: Final = Recipe()


@dataclass(frozen=True)
class MiniBatches:
    """Constants of k-means in one pass over mini-batches, as D4M's released code and its published script have them.

    Args:
        images_per_cluster: a mini-batch has this many times ipc images (`km_expand`).
        random_state: of scikit-learn's MiniBatchKMeans, the same for all seeds; a seed decides the order of the images.
    """

    images_per_cluster: int = 1
    random_state: int = 0


def hashed_settings(settings: Prototype, mini_batches: MiniBatches | None = None) -> dict[str, Any]:
    """Collect the settings that determine PROTOTYPES and MEMBERS of given PAIRS, seed and ipc.

    Args:
        settings: of the stage.
        mini_batches: for k-means in one pass over mini-batches, which has no `n_init`; none: full k-means.
    """
    hashed = settings.model_dump() | {"recipe": asdict(RECIPE)}
    if mini_batches is None:
        return hashed
    del hashed["n_init"]
    return hashed | {"mini_batches": asdict(mini_batches)}


def prototypes_schema(latent: tuple[int, int, int]) -> pa.Schema:
    """Make the schema of PROTOTYPES for centroids of shape (c, h, w)."""
    return pa.schema(
        [
            column("prototype_id", pa.string(), "label and cluster, unique in the table"),
            column("label", pa.int32(), "index of class_name in the job's class list"),
            column("class_name", pa.string(), "name of the class, as used in prompts"),
            column("cluster", pa.int32(), "cluster within the class, 0 .. ipc - 1"),
            column("size", pa.int32(), "number of inliers in the cluster; one of mini-batches may have none"),
            column("latent", pa.fixed_shape_tensor(pa.float32(), latent), "the centroid: the image prototype"),
            column("text", pa.string(), "the text prototype: the caption chosen for the cluster"),
            column("text_image_id", pa.string(), "the image with this caption, of the cluster unless its size is 0"),
            column("words", pa.list_(pa.string()), "the cluster's representative words, most frequent first"),
        ]
    )


#: For reading columns other than the latents: the shape does not matter then.
PROTOTYPES: Final = prototypes_schema((1, 1, 1))
MEMBERS: Final = pa.schema(
    [
        column("image_id", pa.string(), "id of the training image"),
        column("label", pa.int32(), "its class"),
        column("cluster", pa.int32(), "its cluster within the class, -1 for an outlier"),
        column("distance", pa.float32(), "distance to the centroid in latent space; to the nearest one for an outlier"),
    ]
)

CLUSTER: Final = Work(
    "prototype",
    "prototype",
    "vlcp_ray.stages.prototype.bench:prototype",
    on_cpu=(0.5, 0.0),
    on_gpu=(1.0, 5.0),  # scikit-learn works on CPUs only
)


class Group(NamedTuple):
    """Steps with the same settings; `mini_batches` is none for full k-means."""

    settings: Prototype
    mini_batches: MiniBatches | None
    steps: list["Step"]


def group_by_settings(steps: Sequence["Step"]) -> list[Group]:
    """Group the steps that have the same settings, so that each group needs one read of the latents."""
    groups: dict[str, Group] = {}
    for step in steps:
        hashed = step.settings
        settings = Prototype(**{name: hashed[name] for name in Prototype.model_fields if name in hashed})
        mini_batches = MiniBatches(**hashed["mini_batches"]) if "mini_batches" in hashed else None
        group = groups.setdefault(json.dumps(hashed, sort_keys=True), Group(settings, mini_batches, []))
        group.steps.append(step)
    return list(groups.values())


def cluster_flops(values: float, images: float, clusters: float, n_init: int | None) -> float:
    """Count the operations of k-means on one class.

    Args:
        values: in the latent of an image.
        images: of the class.
        clusters: of all runs together.
        n_init: starts of each run; none: one pass over mini-batches, and one to find the members of each cluster.
    """
    passes = 2 if n_init is None else _ITERATIONS * n_init
    return 2 * values * images * clusters * passes


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    images, classes = inputs.images.train, inputs.images.classes
    channels, height, width = inputs.latent_shape(inputs.job.encode.resolution)
    values, per_class = channels * height * width, images / classes
    flops = 0.0
    for settings, mini_batches, group in group_by_settings(steps):
        n_init = None if mini_batches else settings.n_init
        flops += cluster_flops(values, per_class, sum(step.key["ipc"] for step in group), n_init)
        flops += 2 * values * per_class**2 if settings.contamination else 0.0  # LOF: distances of all pairs of images
    yield Load(CLUSTER, images, flops * classes, units=classes)


STAGE: Final = Stage(
    "prototype",
    version=4,
    summary="PAIRS -> PROTOTYPES + MEMBERS, a class at a time",
    tables={"prototypes": prototypes_schema((4, 64, 64)), "members": MEMBERS},
    pools=("prototype",),
    counted="members",
    rows="prototypes",
    works=(CLUSTER,),
    loads=_loads,
)
