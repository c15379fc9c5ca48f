"""Read a distilled set from an image folder, parquet or another layout of image sets, by the names of its classes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa

from vlcp_ray import images
from vlcp_ray.scoring.class_names import OF_JOB, JobClasses
from vlcp_ray.scoring.given import GivenSet, Rows, as_rows
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import open_source
from vlcp_ray.sources.reader import Source
from vlcp_ray.stages.ingest import Ingest, format_skipped
from vlcp_ray.stages.ingest.check import checker

_OWN: Final = ("class_list", "follow_links", "max_pixels", "max_bytes", "max_seconds")  # settings of the job that hold


def read(source: str, shown: str, classes: JobClasses, class_list: str, settings: Ingest) -> GivenSet:
    """Read the train split of a set that `ingest` could read.

    Args:
        source: a folder, a file or a URI.
        shown: the same, without secrets.
        class_list: of `--classes`, for a set whose classes are numbers; empty: none.
        settings: of the job's images: limits, and the names of classes.

    Raises:
        ConfigError: it cannot be opened, an image cannot be used, or its classes are not those of the job.
    """
    opened = _open(source, shown, class_list, settings)
    keys, names = opened.classes.keys, opened.classes.names
    labels = dict(zip(keys, _labels(keys, names, classes, class_list, shown), strict=True))
    check, found, skipped = checker(settings.max_pixels, settings.max_seconds), Rows(len(classes.names)), Counter[str]()
    for part in _rows(opened, shown, skipped):
        for row, problem in zip(part, check([row["image"] for row in part]), strict=True):
            if problem:
                raise ConfigError(f"{shown}: {row['source']} cannot be used: {problem[1]}")
            found.add(row["image_id"], labels[row["class_key"]], row["image"], images.describe(row["image"])[1:])
    if not found.rows:
        raise ConfigError(f"{shown}: it has no training images{_not_read(skipped)}")
    classes.check_complete(found.counts, shown)

    def tables() -> Iterator[pa.Table]:
        for part in _rows(opened, shown, Counter()):
            rows = [(row["image_id"], labels[row["class_key"]], row["image"]) for row in part]
            yield as_rows(rows, classes.names)

    notes = [f"not read: {format_skipped(skipped)}"] if skipped else []
    return GivenSet(
        source=shown,
        form=opened.description,
        rows=tables,
        content=found.content(),
        counts=tuple(found.counts),
        sizes=found.sizes,
        labels="class names",
        notes=tuple(notes),
    )


def _open(source: str, shown: str, class_list: str, settings: Ingest) -> Source:
    own = {name: getattr(settings, name) for name in _OWN}
    if class_list and class_list != OF_JOB:
        own["class_list"] = class_list
    try:
        # Not from the cache of `open_source`: a folder may have changed since it was scored.
        return open_source.__wrapped__(Ingest(source=source, **own))
    except ConfigError as error:
        text = str(error).removeprefix("ingest.source: ").replace("ingest.class_list", "--classes")
        raise ConfigError(text if shown in text else f"{shown}: {text}") from error


def _labels(
    keys: tuple[str, ...], names: tuple[str, ...], classes: JobClasses, class_list: str, shown: str
) -> list[int]:
    """Return the job's label of each class key of the set."""
    known = {*classes.keys, *classes.names}
    if all(key.isdigit() and name.isdigit() and key not in known for key, name in zip(keys, names, strict=True)):
        listed = classes.of_numbers(class_list, shown)
        numbers = [int(key) for key in keys]
        if outside := [number for number in numbers if number >= len(listed)]:
            raise ConfigError(f"{shown}: its class {outside[0]} is outside of the {len(listed)} of --classes")
        return [listed[number] for number in numbers]
    wanted = [key if key in classes.keys else name for key, name in zip(keys, names, strict=True)]
    return classes.match(wanted, shown)


def _rows(source: Source, shown: str, skipped: Counter[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of train, some at a time, each with an id of its own: tables may have equal ones."""
    seen = Counter[str]()
    for part in source.parts():
        if part.split == "val":
            continue
        for table in source.read(part, frozenset(), skipped):
            rows = [row for row in table.to_pylist() if row["split"] == "train"]
            for row in rows:
                _check_row(row, source, shown)
                seen[row["image_id"]] += 1
                if (number := seen[row["image_id"]]) > 1:
                    row["image_id"] = f"{row['image_id']}#{number}"
            if rows:
                yield rows


def _check_row(row: Mapping[str, Any], source: Source, shown: str) -> None:
    if row["reason"]:
        raise ConfigError(f"{shown}: {row['source']} cannot be read: {row['detail']}")
    if row["class_key"] not in source.classes.keys:
        raise ConfigError(f"{shown}: {row['source']} has no class, or one that its class list lacks")


def _not_read(skipped: Counter[str]) -> str:
    return f" (not read: {format_skipped(skipped)})" if skipped else ""
