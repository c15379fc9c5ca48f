"""ingest: read the image set as IMAGES, with every image checked by decoding it, and REJECTED."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field, field_validator

from vlcp_ray import sources
from vlcp_ray.schemas import IMAGES
from vlcp_ray.settings import Fraction, OneOf, Positive, Settings
from vlcp_ray.stages.stage import Load, Stage, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step


class Expect(Settings):
    """The expected size of an image set, for the estimate of `plan` and for a warning; no result depends on it."""

    train: Positive = Field(description="number of training images")
    val: Positive = Field(description="number of val images")
    classes: Positive = Field(description="number of classes")
    gib: float = Field(gt=0, description="size of the wanted image files in GiB")


class Ingest(Settings):
    """The labelled images to distil."""

    source: str = Field(
        "digits", description="a folder, a file or a URI (s3://, gs://, hf://); `digits`: the embedded digits"
    )
    layout: Annotated[str, OneOf(sources.LAYOUTS, ("auto",))] = Field(
        "auto", description="how the images are stored; auto: detected from the files"
    )
    classes: tuple[str, ...] = Field(
        (),
        description="wnids, class names or a packaged list: imagenette, imagewoof, imageidc, imagenet100; empty: all",
    )
    class_list: str = Field(
        "",
        description="classes of label numbers, for sets without names: imagenet1k, or a file of lines `key<TAB>name`",
    )
    val_fraction: Fraction = Field(
        0.0, description="share of train that becomes val, in place of the set's own val; 0: use the set's own val"
    )
    max_pixels: Positive = Field(
        64_000_000, description="largest number of pixels of an image; rejects decompression bombs"
    )
    max_bytes: Positive = Field(64 * 2**20, description="largest size of an image file in bytes")
    max_seconds: float = Field(
        10.0, gt=0, description="processor seconds that decoding an image may take; rejects pictures made to be slow"
    )
    follow_links: bool = Field(
        False, description="whether links that leave the image set are read: a set of strangers may link to any file"
    )
    expect: Expect | None = Field(
        None, description="expected size of the image set, for the estimate of `plan` and for a warning"
    )
    max_rejected: Fraction = Field(
        0.01, description="largest share of rejected rows; the run stops if more are rejected"
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _one_class_to_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def check_classes(manifest: Mapping[str, Any], ipc: int) -> None:
    """Check that every class has enough training images for a distilled set.

    Args:
        manifest: of IMAGES.
        ipc: images per class of the largest set.

    Raises:
        ValueError: a class has fewer usable training images than `ipc`. The message names the class and the fix.
    """
    counts = dict(zip(manifest["class_names"], manifest["train"], strict=True))
    few = sorted((count, name) for name, count in counts.items() if count < ipc)
    if few:
        raise ValueError(
            f"class {few[0][1]!r} has only {few[0][0]} usable training images, fewer than ipc = {ipc}"
            f"{f' (and {len(few) - 1} more classes)' if few[1:] else ''}: lower ipc, add images or leave the class out "
            "of ingest.classes"
        )


def check_val(manifest: Mapping[str, Any], stage: str) -> None:
    """Check that there are real images to evaluate on.

    Args:
        manifest: of IMAGES.
        stage: the stage that needs them, for the error.

    Raises:
        ValueError: IMAGES has no val split.
    """
    if not manifest["splits"].get("val"):
        raise ValueError(
            f"{stage}: the image set has no val images; set ingest.val_fraction, or stop earlier: --to generate"
        )


READ: Final = Work(
    "ingest",
    "ingest",
    "vlcp_ray.stages.ingest.bench:ingest",
    unit="images",
    images_per_second=100.0,  # assumed: Pillow checks a photograph of 0.1 MB in 10 ms on a core
)


def _loads(inputs: "CostInputs", _: Sequence["Step"]) -> Iterator[Load]:
    count = inputs.images.train + inputs.images.val
    yield Load(READ, count, count, units=count)


def _check(job: "Job") -> None:
    sources.open_source(job.ingest)


STAGE: Final = Stage(
    "ingest",
    version=2,
    summary="an image set -> IMAGES + REJECTED",
    tables={"images": IMAGES},
    pools=("ingest",),
    row_wise=True,
    output="images",
    works=(READ,),
    loads=_loads,
    disk=lambda inputs, steps: inputs.images.gib,
    check=_check,
)
