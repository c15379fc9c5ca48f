"""ingest: read the image set as IMAGES, with every image checked by decoding it, and REJECTED."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field, field_validator

from vlcp_ray import sources
from vlcp_ray.schemas import IMAGES
from vlcp_ray.settings import ConfigError, Fraction, OneOf, Positive, Settings
from vlcp_ray.sources.local_files import NO_SUFFIX
from vlcp_ray.stages.stage import Load, Stage, Work
from vlcp_ray.store.uris import public

if TYPE_CHECKING:
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
        "digits",
        min_length=1,
        description="a folder, a file or a URI (s3://, gs://, hf://); `digits`: the embedded digits",
    )
    revision: str = Field(
        "", description="branch, tag or commit of a set of the Hugging Face hub; empty: that of the URI, or main"
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
    config: str = Field(
        "", description="the folder of one configuration, of a set that has several; empty: the set has one"
    )
    class_key: str = Field(
        "", description="the column of a table, or field of a sample's json, that names the class; empty: a usual one"
    )
    max_per_class: Annotated[int, Field(ge=0)] = Field(
        0, description="largest number of training images of a class, the first by a hash of their ids; 0: all"
    )
    max_val_per_class: Annotated[int, Field(ge=0)] = Field(
        0, description="largest number of val images of a class, chosen in the same way; 0: all"
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


#: The file with the keys and names of an artifact's classes, and the commit of its set on the hub: of no other are its
#: rows.
CLASSES: Final = "classes.json"
_LISTED: Final = 8  # suffixes
_TOLERANCE: Final = 0.05  # relative difference of numbers of images
_NO_VAL: Final = (
    "no val images, on which sets are evaluated; set ingest.val_fraction, which takes val from train, or stop earlier: "
    "--to generate"
)


def format_sample(settings: Ingest) -> str:
    """Format the largest numbers of images of a class: "20 train and 10 val images of each class at most", or ""."""
    limits = {"train": settings.max_per_class, "val": settings.max_val_per_class}
    given = " and ".join(f"{count:,} {split}" for split, count in limits.items() if count)
    return f"{given} images of each class at most" if given else ""


def format_skipped(skipped: Mapping[str, int]) -> str:
    """Format the number of files that are not read by suffix: "3 .heic files, 1 .txt file (...)"; the first ones."""
    texts = [_format_count(what, count) for what, count in islice(skipped.items(), _LISTED)]
    if rest := sum(islice(skipped.values(), _LISTED, None)):
        texts.append(f"{rest:,} others")
    cure = "; .heic is read where pillow-heif is installed" if {".heic", ".heif"} & set(skipped) else ""
    return f"{', '.join(texts)}{cure}"


def _format_count(what: str, count: int) -> str:
    is_suffix = what.startswith(".") or what == NO_SUFFIX
    return f"{count:,} {what} file{'s' * (count > 1)}" if is_suffix else f"{count:,} {what}"


def is_other_number(count: int, expected: int) -> bool:
    """Return whether a number of images is not about the expected one: some images are rejected."""
    return abs(count - expected) > _TOLERANCE * expected


def compare_expected(settings: Ingest, train: int, val: int) -> str:
    """Return that the numbers of images are not those that the job expects, or ""."""
    expect = settings.expect
    if not expect or settings.max_per_class or settings.max_val_per_class:
        return ""
    pairs = [(train, expect.train), (val, expect.val)]
    if settings.val_fraction:  # val is a part of train
        pairs = [(train + val, expect.train)]
    if not any(is_other_number(count, wanted) for count, wanted in pairs):
        return ""
    return (
        f"the job expects {expect.train:,} train and {expect.val:,} val images, the set has {train:,} and {val:,}: "
        "another split, or part of the set? Published figures are of what the job expects"
    )


def check_source(settings: Ingest, needs_val: bool) -> None:
    """Check what the files and folders of the image set tell before any image is read.

    Args:
        needs_val: whether a stage of the run needs val images.

    Raises:
        ConfigError: the set cannot be opened, or val is needed and there is one class or no val split.
    """
    source = sources.open_source(settings)
    shown = public(settings.source)
    if needs_val and len(source.classes.keys) == 1:
        raise ConfigError(
            f"ingest.source: {shown} is {source.description}: {source.classes.names[0]!r}, and a classifier needs two; "
            "give the folder that holds the class folders"
        )
    if needs_val and not settings.val_fraction and "val" not in source.splits:
        raise ConfigError(f"ingest.source: {shown} is {source.description}, and has {_NO_VAL}")


def check_images(manifest: Mapping[str, Any], ipc: int, needs_val: bool) -> None:
    """Check that the classes of IMAGES can be distilled and evaluated.

    Args:
        manifest: of IMAGES.
        ipc: images per class of the largest set.
        needs_val: whether a stage of the run needs val images.

    Raises:
        ConfigError: a class has fewer usable training images than `ipc`, or there are no val images, or none of a
            class. The message names the class and the fix.
    """
    counts = dict(zip(manifest["class_names"], manifest["train"], strict=True))
    few = sorted((count, name) for name, count in counts.items() if count < ipc)
    if few:
        count, name = few[0]
        more = len(few) - 1
        others = f" (and {more} more {'classes' if more > 1 else 'class'})" if more else ""
        lower = "lower ipc, add images" if count else "add images"
        raise ConfigError(
            f"ipc: class {name!r} has {f'only {count}' if count else 'no'} usable training "
            f"{'image' if count == 1 else 'images'}, fewer than ipc = {ipc}{others}: {lower}, or name the other "
            f"classes in ingest.classes{_two_names(manifest, name)}{_skipped(manifest)}"
        )
    if not needs_val:
        return
    if len(counts) == 1:
        raise ConfigError("ingest.source: the image set has one class, and a classifier needs two")
    if not manifest["splits"].get("val"):
        raise ConfigError(f"ingest.val_fraction: the image set has {_NO_VAL}")
    val = dict(zip(manifest["class_names"], manifest["val"], strict=True))
    if without := [name for name, count in val.items() if not count]:
        raise ConfigError(
            f"ingest.source: class {without[0]!r}{f' and {len(without) - 1} more' if without[1:] else ''} of train has "
            "no usable val images; add some, name the other classes in ingest.classes, or set ingest.val_fraction, "
            f"which takes val from train{_two_names(manifest, without[0])}{_skipped(manifest)}"
        )


def _two_names(manifest: Mapping[str, Any], name: str) -> str:
    """Return that a class has another name in the other split, as of "Cat" and "cat", or ""."""
    train, val = ({n for n, c in zip(manifest["class_names"], manifest[s], strict=True) if c} for s in ("train", "val"))
    for one in sorted(train - val):
        for other in sorted(val - train):
            if name in (one, other) and _letters(one) == _letters(other):
                return f"; train has {one!r} and val has {other!r}: if they are one class, rename one of the folders"
    return ""


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _skipped(manifest: Mapping[str, Any]) -> str:
    return f" (not read were {format_skipped(manifest['skipped'])})" if manifest.get("skipped") else ""


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


STAGE: Final = Stage(
    "ingest",
    version=3,
    summary="an image set -> IMAGES + REJECTED",
    tables={"images": IMAGES},
    files=("parts", CLASSES, "copied-from.txt", "rejected"),
    pools=("ingest",),
    row_wise=True,
    output="images",
    works=(READ,),
    loads=_loads,
    disk=lambda inputs, steps: inputs.images.gib,
)
