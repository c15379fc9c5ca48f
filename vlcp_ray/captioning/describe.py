"""Caption the training images of a set in one process, and write the table that `caption.source` reads."""

import csv
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Final, TextIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from vlcp_ray.models import families, pretrained
from vlcp_ray.schemas import REASON_COLUMNS, reasons
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import hashed_settings, open_source
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.ingest.label import LabelRows
from vlcp_ray.stages.pair import ANSWERS, Caption, check_captioner
from vlcp_ray.stages.pair.answers import problems_of

SUFFIXES: Final = (".parquet", ".jsonl", ".csv")
_COLUMNS: Final = ("image_id", "caption", "label", "class_name", "source")
_BATCH: Final = 256  # images in one call of the model
_TOKENS: Final = tuple(name for name in ANSWERS.names if name != "image_id")

#: Adds caption, the columns of ANSWERS and reasons to rows of IMAGES, as `stages.pair.caption.CaptionRows` does.
CaptionTable = Callable[[pa.Table], pa.Table]


@dataclass
class Described:
    """What was captioned.

    Args:
        written: captions in the table, with those of earlier runs.
        rejected: images without a caption, by reason.
        first: the first image of each reason, with the error in full.
        tokens: of the answers of this run.
        cut: answers of this run that were cut at max_tokens.
        problems: captions of this run that look wrong, by what is wrong (`stages.pair.PROBLEMS`).
        seconds: of this run, without loading the model.
    """

    written: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    cut: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def check_captions(settings: Ingest, caption: Caption, target: str) -> None:
    """Refuse settings and targets that cannot work, before a model is loaded.

    Raises:
        ConfigError: names the setting and the fix.
    """
    if caption.source:
        raise ConfigError("caption.source: the table is what this command writes; leave it out")
    if settings.max_per_class or settings.max_val_per_class or settings.val_fraction:
        raise ConfigError("ingest: all training images are captioned; leave out max_per_class and val_fraction")
    if settings.expect:
        raise ConfigError("ingest.expect is for the estimate of plan; leave it out")
    try:
        pretrained.check(caption.model, "caption.model", families.CAPTIONER)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    pretrained.check_hub(pretrained.Use("caption.model", caption.model, families.CAPTIONER))
    check_captioner(caption)
    path = Path(target).expanduser()
    if target and path.exists():
        raise ConfigError(f"--to {target}: it exists already; name another file, or remove it")
    if target and not path.parent.is_dir():
        raise ConfigError(f"--to {target}: there is no folder {str(path.parent)!r}; make it")


def train_images(settings: Ingest, done: frozenset[str] = frozenset()) -> Iterator[pa.Table]:
    """Yield the training images, labelled and checked as ingest does; rejected ones with their reason.

    Args:
        done: the sources of images that are left out.
    """
    source = open_source(settings)
    label = LabelRows(settings, source.classes.keys, source.classes.names)
    for part in source.parts():
        if part.split != "val":
            for table in source.read(part, done):
                labelled = label(table)
                yield labelled.filter(pc.not_equal(labelled["split"], "val"))


def preview(settings: Ingest, caption: CaptionTable, count: int) -> list[dict[str, Any]]:
    """Caption some images of different classes, where the set has a folder for each, else the first ones.

    Returns a row for each, with image, caption, class_name, reason and the columns of ANSWERS.
    """
    source = open_source(settings)
    label = LabelRows(settings, source.classes.keys, source.classes.names)
    parts = [part for part in source.parts() if part.split != "val"]
    step = max(1, len(parts) // count) if parts and parts[0].class_key else 1
    chosen: list[pa.Table] = []
    each = 1 if parts and parts[0].class_key and len(parts) >= count else count
    for part in islice(parts[::step], count):
        first = next(iter(source.read(part, frozenset())), None)
        if first is not None:
            chosen.append(label(first.slice(0, each)))
        if sum(map(len, chosen)) >= count:
            break
    if not chosen:
        raise ConfigError("ingest.source: the image set has no training images")
    return [dict(row) for row in caption(pa.concat_tables(chosen).slice(0, count)).to_pylist()]


def describe(
    settings: Ingest,
    caption: Caption,
    load: Callable[[Caption], CaptionTable],
    target: Path,
    say: Callable[[str], None],
) -> Described:
    """Caption all training images and write them to `target`.

    The rows are in `<target>.partial` until all are there: the same call again continues with them.

    Args:
        load: loads the model.
        target: parquet, JSON lines or CSV, by its suffix.
        say: gets a line after each batch.

    Raises:
        ConfigError: `<target>.partial` is of other settings; or more images than ingest.max_rejected cannot be read.
    """
    partial = target.with_name(f"{target.name}.partial")
    done, found = _read_partial(partial, settings, caption), Described()
    caption_rows, start, unreadable = load(caption), time.monotonic(), 0
    with partial.open("a", encoding="utf-8") as lines:
        if not done.is_begun:
            lines.write(json.dumps(_identity(settings, caption)) + "\n")
        found.written = len(done.sources)
        for table in _batches(train_images(settings, done.sources)):
            unreadable += sum(map(bool, reasons(table)))
            _write(caption_rows(table), caption.prompt, lines, found)
            found.seconds = time.monotonic() - start
            say(f"{found.written:,} captions, {found.tokens / max(found.seconds, 1e-9):,.0f} tokens/s")
    images = found.written + found.rejected.total()
    if unreadable > settings.max_rejected * images:
        raise ConfigError(
            f"ingest: {unreadable:,} of {images:,} images cannot be read, more than ingest.max_rejected "
            f"({settings.max_rejected:.1%}): {'; '.join(format_rejected(found))}. Fix the files and call the same "
            "command again, which continues, or raise ingest.max_rejected"
        )
    if not found.written:
        why = "; ".join(format_rejected(found)) or "it has none"
        raise ConfigError(f"ingest.source: no training image of the set has got a caption: {why}")
    _convert(partial, target)
    partial.unlink()
    return found


def _batches(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables, such as those of a class with few images, to batches for one call of the model."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _BATCH:
            yield pa.concat_tables(waiting)
            waiting = []
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def _write(table: pa.Table, prompt: str, lines: TextIO, found: Described) -> None:
    """Append the good rows of a captioned table, and count them."""
    for row in table.select([*_COLUMNS, *REASON_COLUMNS, *_TOKENS]).to_pylist():
        if row["reason"]:
            found.rejected[row["reason"]] += 1
            found.first.setdefault(row["reason"], f"{row['source']}: {row['detail']}")
            continue
        lines.write(json.dumps({name: row[name] for name in _COLUMNS}, ensure_ascii=False) + "\n")
        found.written += 1
        found.tokens += row["tokens"]
        found.cut += row["is_cut"]
        found.problems.update(problems_of(row["caption"], prompt))
    lines.flush()


@dataclass(frozen=True)
class _Partial:
    is_begun: bool
    sources: frozenset[str]


def _identity(settings: Ingest, caption: Caption) -> dict[str, Any]:
    """Return the settings on which the captions depend."""
    model = pretrained.content_hash(caption.model)
    return {"images": hashed_settings(settings), "captions": caption.model_dump(mode="json") | {"model": model}}


def _read_partial(partial: Path, settings: Ingest, caption: Caption) -> _Partial:
    """Read which images an interrupted run has captioned; a last line that it has not finished is removed."""
    if not partial.exists():
        return _Partial(False, frozenset())
    sources, whole = set[str](), 0
    with partial.open("rb") as lines:
        for line in takewhile(lambda line: line.endswith(b"\n"), lines):
            row = json.loads(line)
            if whole:
                sources.add(row["source"])
            elif row != json.loads(json.dumps(_identity(settings, caption))):
                raise ConfigError(
                    f"--to: {partial} was begun with other settings; remove it, or give the same settings"
                )
            whole += len(line)
    os.truncate(partial, whole)
    return _Partial(whole > 0, frozenset(sources))


def _rows(partial: Path) -> Iterator[dict[str, Any]]:
    with partial.open(encoding="utf-8") as lines:
        next(lines)  # the settings
        yield from map(json.loads, lines)


def _convert(partial: Path, target: Path) -> None:
    """Write the rows in the format of the target, which appears whole."""
    whole = target.with_name(f"{target.name}.new")
    if target.suffix == ".parquet":
        with parquet.ParquetWriter(whole, _schema()) as writer:
            rows = _rows(partial)
            while part := list(islice(rows, 10_000)):
                writer.write_table(pa.Table.from_pylist(part, _schema()))
    else:
        with whole.open("w", encoding="utf-8", newline="") as lines:
            if target.suffix == ".csv":
                table = csv.DictWriter(lines, _COLUMNS)
                table.writeheader()
                table.writerows(_rows(partial))
            else:
                lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(partial))
    whole.replace(target)


def _schema() -> pa.Schema:
    return pa.schema([(name, pa.int32() if name == "label" else pa.string()) for name in _COLUMNS])


def format_rejected(found: Described) -> Sequence[str]:
    """Format the images without a caption: "3 images without a caption (undecodable), the first: dog/3.jpg: ..."."""
    return [
        f"{count:,} image{'s' * (count > 1)} without a caption ({reason}), the first: {found.first[reason]}"
        for reason, count in found.rejected.items()
    ]
