"""A distilled set that was made elsewhere: its rows, what is known of it, and its artifact."""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from vlcp_ray import images
from vlcp_ray.engine.context import identity, list_written, versions
from vlcp_ray.methods import METHODS
from vlcp_ray.schemas import SYNTHETIC, conform
from vlcp_ray.scoring.class_names import JobClasses
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import select
from vlcp_ray.store.artifact import Artifact, Step, Store

#: The fact of a manifest that says where a set came from.
ORIGIN: Final = "origin"
#: The name that random numbers of trainings follow from, for sets that are no export of a run.
STREAM: Final = "given"
_GENERIC: Final = ("images", "image", "data", "syn", "train")  # names of files that say nothing of the set
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]*")
_MAX_NAME: Final = 60  # characters
_PART: Final = 1000  # rows of a file


@dataclass(frozen=True, eq=False)
class GivenSet:
    """A set as it was read.

    Args:
        source: the folder, file or URI, without secrets.
        form: what it is, in words.
        rows: yields the rows of SYNTHETIC, each time it is called; pixels as they are.
        content: the SHA-256 of images, ids, labels and soft labels: the same content is the same set.
        counts: images of each label.
        sizes: (width, height) of the images, with their number.
        soft: image_id and soft_label of each image, in the order of the job's labels; None for hard labels.
        labels: what the labels are, in words.
        scale: of the numbers of a tensor, in words; empty for image files.
        notes: what a reader of the scores has to know, a sentence each.
        method, seed, ipc: of an export of a run; of another set `method` is empty.
    """

    source: str
    form: str
    rows: Callable[[], Iterator[pa.Table]] = field(repr=False)
    content: str
    counts: tuple[int, ...]
    sizes: Counter[tuple[int, int]]
    labels: str
    soft: pa.Table | None = field(default=None, repr=False)
    scale: str = ""
    notes: tuple[str, ...] = ()
    method: str = ""
    seed: int | None = None
    ipc: int = 0

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(self.counts)

    @property
    def per_class(self) -> int:
        """The images per class: of an export that of its run, else the mean, rounded, at least 1."""
        return self.ipc or max(1, round(self.images / len(self.counts)))


@dataclass(frozen=True, eq=False)
class Entry:
    """A set under the key that its scores have.

    Args:
        step: of its artifact.
        stream: the name that random numbers of its trainings follow from: of an export the method of its run.
        facts: where it came from and what is known of it, as plain objects.
    """

    given: GivenSet
    step: Step
    stream: str
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its rows, the column `method`."""
        return str(self.step.key["method"])


class Rows:
    """Count and hash the images of a set as they are read."""

    def __init__(self, classes: int) -> None:
        self.counts, self.sizes, self.rows = [0] * classes, Counter[tuple[int, int]](), list[tuple[str, int, str]]()

    def add(self, image_id: str, label: int, content: bytes, size: tuple[int, int]) -> None:
        """Count an image.

        Args:
            content: bytes that are equal where the pixels are.
        """
        self.counts[label] += 1
        self.sizes[size] += 1
        self.rows.append((image_id, label, hashlib.sha256(content).hexdigest()))

    def content(self, soft: pa.Table | None = None) -> str:
        """Return the hash of all rows, in any order."""
        found = hashlib.sha256(repr(sorted(self.rows)).encode("utf-8", "backslashreplace"))
        if soft is not None:
            for row in soft.sort_by("image_id").to_pylist():
                found.update(repr(row).encode("utf-8", "backslashreplace"))
        return found.hexdigest()


def default_name(place: str) -> str:
    """Name a set by its folder or file; a file that is called `images_best.pt` by its folder."""
    path = Path(place.rstrip("/").partition("?")[0] if "://" in place else os.path.abspath(place))
    is_file = path.suffix.lower() in (".pt", ".pth", ".parquet", ".tar", ".npz")
    base = path.stem if is_file else path.name
    if is_file and base.lower().startswith(_GENERIC):
        base = path.parent.name
    name = re.sub(r"[^a-z0-9]+", "-", base.casefold()).strip("-")[:_MAX_NAME]
    return name or "set"


def assign(
    found: Sequence[GivenSet],
    places: Sequence[str],
    names: Sequence[str],
    seeds: Sequence[int],
    beside: Sequence[str],
    input_size: int,
) -> list[Entry]:
    """Give every set its key: name, seed and images per class.

    Sets with the same name, which must have been given, and the same number of images per class are of the next seed
    each: together they are one row, as the sets of a run are.

    Args:
        places: of the sets, as the user has given them.
        names: one for all sets, one for each, or none: then that of the folder or file.
        seeds: of the job.
        beside: the methods that they are compared with.
        input_size: side in pixels that the job trains with.

    Raises:
        ConfigError: a name cannot be used, or there are more sets of a name than seeds.
    """
    if names and len(names) not in (1, len(found)):
        raise ConfigError(f"--name: {len(names)} names for {len(found)} sets; give one for each, or one for all")
    given_names = [default_name(place) for place in places]
    if names:
        given_names = list(names) if len(names) == len(found) else [names[0]] * len(found)
    for one, name in zip(found, given_names, strict=True):
        _check_name(name, one, beside)
    entries: list[Entry] = []
    for place, one, name in zip(places, found, given_names, strict=True):
        taken = {entry.step.key["seed"] for entry in entries if _is_same(entry, name, one)}
        if taken and not names:
            raise ConfigError(f"{place}: another set has the name {name!r}, too; give --name for each of them")
        entries.append(_entry(one, name, _seed(one, taken, seeds, name), input_size))
    return entries


def _is_same(entry: Entry, name: str, given: GivenSet) -> bool:
    return entry.name == name and entry.step.key["ipc"] == given.per_class


def _seed(given: GivenSet, taken: set[int], seeds: Sequence[int], name: str) -> int:
    wanted = [given.seed] if given.seed is not None else list(seeds)
    free = [seed for seed in wanted if seed not in taken]
    if not free:
        fix = "give it another --name" if given.seed is not None else "add seeds: --set seeds=[0,1,2]"
        raise ConfigError(f"{given.source}: {len(taken)} sets are called {name!r}, with the seeds {wanted}; {fix}")
    return free[0]


def _check_name(name: str, given: GivenSet, beside: Sequence[str]) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise ConfigError(
            f"--name {name}: it must consist of lower-case letters, digits and hyphens, at most {_MAX_NAME}"
        )
    if name in beside or (name in METHODS and name != given.method):
        raise ConfigError(f"{given.source}: {name!r} is the name of a method; give it another with --name")


def _entry(given: GivenSet, name: str, seed: int, input_size: int) -> Entry:
    key = {"seed": seed, "ipc": given.per_class, "method": name}
    step = Step(select.STAGE.name, select.STAGE.version, {"content": given.content}, key)
    notes = [*given.notes, *_notes(given, input_size)]
    facts = {
        "method": name,
        "ipc": given.per_class,
        "seed": seed,
        "source": given.source,
        "form": given.form,
        "images": given.images,
        "classes": len(given.counts),
        "images_per_class": [min(given.counts), max(given.counts)],
        "sizes": [f"{width} x {height}" for (width, height), _ in given.sizes.most_common(3)],
        "scale": given.scale,
        "labels": given.labels,
        "notes": notes,
        "artifact": step.folder,
    }
    return Entry(given, step, given.method or STREAM, facts)


def _notes(given: GivenSet, input_size: int) -> Iterator[str]:
    """Yield what follows from the counts and the sizes of the images."""
    few, many = min(given.counts), max(given.counts)
    if few != many:
        yield f"its classes have {few:,} to {many:,} images: the sets beside it have {given.per_class:,} of each"
    others = [size for size in given.sizes if size != (input_size, input_size)]
    if others:
        width, height = max(others, key=lambda size: given.sizes[size])
        kinds = f" and {len(others) - 1} other sizes" if others[1:] else ""
        yield (
            f"images of {width} x {height}{kinds} are resized to {input_size} x {input_size} as the job resizes all "
            "images: short side, bilinear, then the middle is cropped"
        )


def describe(facts: dict[str, Any]) -> list[str]:
    """Write the facts of a set as lines of text: what it is, and a line for each note."""
    few, many = facts["images_per_class"]
    per_class = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    head = f"{facts['method']}: {facts['images']:,} images, {per_class} of each of {facts['classes']:,} classes, "
    scale = f", {facts['scale']}" if facts["scale"] else ""
    first = f"{head}seed {facts['seed']}, from {facts['source']} ({facts['form']}{scale}; labels: {facts['labels']})"
    return [first, *(f"  {note}" for note in facts["notes"])]


def write(entry: Entry, store: Store) -> None:
    """Write the artifact of a set into a store, unless it is there.

    Raises:
        ConfigError: the set has changed since it was read.
    """
    artifact, start = store.artifact(entry.step), time.monotonic()
    if artifact.manifest() is not None:
        return
    count = _write_rows(artifact, entry.given.rows())
    if count != entry.given.images:
        raise ConfigError(f"{entry.given.source}: its files have changed while they were read; run it again")
    if entry.given.soft is not None:
        artifact.write_table(f"{select.SOFT}/0.parquet", conform(entry.given.soft, select.SOFT_LABELS))
    facts = {"rows_in": count, "rows": count, "rejected": 0, "seconds": time.monotonic() - start, "scale": {}}
    facts |= {"versions": versions(), ORIGIN: entry.facts, "files": list_written(artifact)}
    artifact.complete(identity(entry.step) | facts)


def _write_rows(artifact: Artifact, parts: Iterable[pa.Table]) -> int:
    count = 0
    for number, part in enumerate(parts):
        artifact.write_table(f"synthetic/{number:05d}.parquet", conform(part, SYNTHETIC))
        count += len(part)
    return count


def as_rows(rows: Sequence[tuple[str, int, bytes]], names: Sequence[str]) -> pa.Table:
    """Make rows of SYNTHETIC from (image_id, label, image file) and the class names by label."""
    columns = {
        "image_id": [row[0] for row in rows],
        "label": [row[1] for row in rows],
        "class_name": [names[row[1]] for row in rows],
        "split": ["train"] * len(rows),
        "image": [row[2] for row in rows],
        "prototype_id": [""] * len(rows),
        "text": [""] * len(rows),
        "seed": [0] * len(rows),
    }
    return pa.table(columns, SYNTHETIC)


def of_arrays(
    pixels: images.Pixels,
    numbers: Sequence[int],
    classes: JobClasses,
    soft: Any,
    ids: Sequence[str] = (),
    **facts: Any,
) -> GivenSet:
    """Make a set of pixels (n, 3, h, w) and labels.

    Args:
        numbers: the job's label of each image.
        soft: (n, classes) float32, in the order of the job's labels; None for hard labels.
        ids: of the images, all different; without any they are the numbers of the rows.
        facts: further fields of the set.
    """
    ids = list(ids) or [f"{number:06d}" for number in range(len(numbers))]
    if len({*ids}) != len(numbers):
        raise ConfigError(
            f"{facts['source']}: its file SET does not list the images of the tensor; export the set again"
        )
    found, size = Rows(len(classes.names)), (pixels.shape[3], pixels.shape[2])
    for image_id, label, image in zip(ids, numbers, pixels, strict=True):
        found.add(image_id, label, repr(image.shape).encode() + image.tobytes(), size)
    shares = None if soft is None else soft_table(ids, soft)

    def rows() -> Iterator[pa.Table]:
        for start in range(0, len(ids), _PART):
            part = range(start, min(start + _PART, len(ids)))
            files = [images.encode_png(pixels[row].transpose(1, 2, 0)) for row in part]
            yield as_rows(
                [(ids[row], numbers[row], file) for row, file in zip(part, files, strict=True)], classes.names
            )

    counts = tuple(found.counts)
    given = GivenSet(rows=rows, content=found.content(shares), counts=counts, sizes=found.sizes, soft=shares, **facts)
    classes.check_complete(counts, given.source)
    return given


def soft_table(ids: Sequence[str], soft: Any) -> pa.Table:
    """Make the table of soft labels (n, classes) float32, in the order of the ids."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(soft.ravel(), pa.float32()), soft.shape[1])
    return pa.table({"image_id": pa.array(ids, pa.string()), "soft_label": values.cast(pa.list_(pa.float32()))})
