"""Knows how an image set is read: its parts by many workers, each row once, and what stops a run before it costs."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import ray

from vlcp_ray.flow.context import Context
from vlcp_ray.flow.data import REJECTED_TABLE, Write
from vlcp_ray.flow.rowwise import apart, counts, done_ids, seal_rows
from vlcp_ray.flow.storage import patient
from vlcp_ray.flow.tasks import in_flight, task
from vlcp_ray.memory import Peaks, begin, peaks
from vlcp_ray.progress import say
from vlcp_ray.schemas import IMAGES, REJECTED, conform, with_column
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes
from vlcp_ray.sources.layouts import open_source
from vlcp_ray.sources.raw import Part, Source
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.store import Artifact, Step, part_name

_IMAGES: Final = "images"
_PARTS: Final = "parts"
_CLASSES: Final = "classes.json"
#: What reading says of a part: how many wanted rows it has, and how many of them were there before.
_READ: Final = pa.schema([("path", pa.string()), ("split", pa.string()), ("rows", pa.int64()), ("done", pa.int64())])
_COMMONEST: Final = 10
_UNEXPECTED: Final = 0.05  # more than this share off the expected number is worth a word


class Done:
    """The rows of a part that are written already, by their source; counts how many of them it was asked for."""

    def __init__(self, sources: pa.Array, part: Part) -> None:
        mine = sources.filter(pc.starts_with(sources, part.path))
        self.sources, self.hits = frozenset(mine.to_pylist()), 0

    def __contains__(self, source: object) -> bool:
        hit = source in self.sources
        self.hits += hit
        return hit


@dataclass(frozen=True)
class ReadPart:
    """Reads, checks and writes one part, and records in the artifact how many rows it has."""

    source: Source
    stage: Ingest
    write: Write
    artifact: Artifact

    def __call__(self, part: Part, done: pa.Array) -> tuple[int, int, Peaks]:
        """Returns rows, rejected rows and the worker's peaks."""
        mine, rows, rejected = Done(done, part), 0, 0
        begin("ingest")
        for table in self.source.read(part, mine):
            rows += len(table)
            rejected += self.write(self.stage(table))["rejected"][0].as_py()
        read = pa.table([[part.path], [part.split], [rows + mine.hits], [mine.hits]], schema=_READ)
        self.artifact.write_table(f"{_PARTS}/{part_name(map(str, asdict(part).values()))}", read)
        return rows, rejected, peaks()


def ingest(context: Context, steps: Sequence[Step]) -> None:
    """The image set as IMAGES and REJECTED."""
    (step,) = steps
    settings, start = context.job.ingest, time.monotonic()
    source, artifact = open_source(settings), context.artifact(step)
    say(step.title, f"{settings.source} is {source.description}")
    parts = [part for part in source.parts() if part.split != "val" or not settings.val_fraction]
    if not parts:
        raise ConfigError("ingest.source: the image set has no train split; rename its folders or files")
    _forget(artifact, source.classes)
    write = Write({"": artifact}, "ingest", _IMAGES, IMAGES, "source")
    work = ReadPart(source, Ingest(settings, source.classes.keys, source.classes.names), write, artifact)
    before = counts(write, artifact)["ids"]
    _read_all(context, step, parts, work, before)
    apart(reject_duplicates, artifact)
    _check_rejected(step, artifact, settings.max_rejected)
    names = source.classes.names
    train = apart(_count_train, artifact, len(names))
    if settings.expect and abs(sum(train) - settings.expect.train) > _UNEXPECTED * settings.expect.train:
        expected = f"the job expects about {settings.expect.train:,} training images"
        say(step.title, f"{expected}, the set has {sum(train):,}: is it the right one?")
    read = artifact.table(_PARTS, _READ)
    if (found := int(pc.sum(read["done"]).as_py() or 0)) != before:
        raise ValueError(
            f"ingest: {before - found} rows that an earlier attempt has read are not in the image set any more; "
            f"remove {artifact.path} and run again"
        )
    facts = {"class_names": names, "train": train, "seconds": time.monotonic() - start}
    seal_rows(context, step, write, int(pc.sum(read["rows"]).as_py()), facts)


def _read_all(context: Context, step: Step, parts: Sequence[Part], work: ReadPart, before: int) -> None:
    pool, reference, done = context.scale.ingest, ray.put(work), done_ids(work.write, work.artifact)
    call = task(_read_part, pool)
    submit = (partial(call.remote, reference, part, done) for part in parts)
    with context.progress([step], None, "rows", before) as told:
        for rows, rejected, most in in_flight(submit, pool.num_workers):
            told.add(rows, rejected=rejected, peaks=most)


def _read_part(work: ReadPart, part: Part, done: pa.Array) -> tuple[int, int, Peaks]:
    return work(part, done)


def _forget(artifact: Artifact, classes: Classes) -> None:
    """Leave of an earlier attempt what is still true of the image set: good rows, if the classes are the same.

    Rejected rows are read again, as what was wrong with them may have been mended.
    """
    now = json.dumps([list(classes.keys), list(classes.names)]).encode()
    stale = [_PARTS, REJECTED_TABLE] if artifact.read_bytes(_CLASSES) == now else [_PARTS, REJECTED_TABLE, _IMAGES]
    for folder in stale:
        if artifact.files(folder):
            artifact.delete(folder)
    artifact.write_bytes(_CLASSES, now)


def reject_duplicates(artifact: Artifact) -> None:
    """Move all rows but one of every image_id from IMAGES to REJECTED: the one with the first `source` stays.

    Whatever order the rows came in, the same ones stay. Safe to be cut off: a row is rejected before it is removed.
    """
    from pyarrow import dataset as pads
    from pyarrow import parquet

    files = artifact.files(_IMAGES)
    if not files:
        return
    store = patient(artifact.filesystem)
    index = pads.dataset(files, filesystem=store).to_table(columns=["image_id", "source", "__filename"])
    ids = pc.value_counts(index["image_id"])
    twice = ids.field("values").filter(pc.greater(ids.field("counts"), 1))
    if not len(twice):
        return
    rows = index.filter(pc.is_in(index["image_id"], value_set=twice))
    rows = rows.sort_by([(name, "ascending") for name in index.column_names])
    first: dict[str, str] = {}
    losers: dict[str, dict[str, str]] = {}
    for row in rows.to_pylist():
        if row["image_id"] in first:
            losers.setdefault(row["__filename"], {})[row["source"]] = first[row["image_id"]]
        else:
            first[row["image_id"]] = row["source"]
    written = {
        _move(artifact, parquet.read_table(file, filesystem=store, partitioning=None), lost)
        for file, lost in losers.items()
    }
    for file in set(losers) - {f"{artifact.path}/{name}" for name in written}:
        store.delete_file(file)


def _move(artifact: Artifact, table: pa.Table, lost: dict[str, str]) -> str:
    """Write a file's rows anew: those that stay to IMAGES, the others to REJECTED. Returns the new file of IMAGES.

    Args:
        lost: of each row that goes, its source and whose the id is.
    """
    is_lost = pc.is_in(table["source"], value_set=pa.array(list(lost), pa.string()))
    # A row that is its own duplicate was written twice by a move that was cut off.
    bad = table.filter(is_lost).filter(pa.array([lost[s] != s for s in table["source"].to_pylist() if s in lost]))
    if len(bad):
        details = [f"{row['image_id']} is {lost[row['source']]} already" for row in bad.to_pylist()]
        for name, values in (("stage", "ingest"), ("reason", "duplicate")):
            bad = with_column(bad, name, pa.array([values] * len(bad), pa.string()))
        bad = conform(with_column(bad, "detail", pa.array(details, pa.string())), REJECTED)
        artifact.write_table(f"{REJECTED_TABLE}/{part_name(bad['source'].to_pylist())}", bad)
    kept = table.filter(pc.invert(is_lost))
    name = f"{_IMAGES}/{part_name(kept['source'].to_pylist())}"
    if len(kept):
        artifact.write_table(name, kept)
    return name


def _check_rejected(step: Step, artifact: Artifact, limit: float) -> None:
    rows = int(pc.sum(artifact.table(_PARTS, _READ, ["rows"])["rows"]).as_py() or 0)
    rejected, commonest = apart(_commonest, artifact)
    if rows == 0:
        raise ValueError("ingest: the image set has no image of the wanted classes; see what was recognised above")
    told = f"{rejected:,} of {rows:,} rows {'was' if rejected == 1 else 'were'} rejected ({rejected / rows:.1%})"
    if rejected > limit * rows:
        raise ValueError(
            f"ingest: {told}, more than ingest.max_rejected ({limit:.1%}): {'; '.join(commonest)}. Mend the files and "
            f"run again, or raise ingest.max_rejected; all rejected rows are in {artifact.path}/{REJECTED_TABLE}"
        )
    if rejected:
        say(step.title, f"{told}: {'; '.join(commonest)}")


def _commonest(artifact: Artifact) -> tuple[int, list[str]]:
    """How many rows are rejected, and the commonest reasons, each with its first row as the example."""
    rows = artifact.table(REJECTED_TABLE, REJECTED, ["reason", "detail", "source"]).sort_by("source")
    groups: dict[str, list[int]] = {}
    for row, reason in enumerate(rows["reason"].to_pylist()):
        groups.setdefault(reason, []).append(row)
    ranked = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))[:_COMMONEST]
    told = []
    for reason, members in ranked:
        example = rows.slice(members[0], 1).to_pylist()[0]
        told.append(f"{len(members):,} x {reason} (e.g. {example['source']}: {example['detail']})")
    return len(rows), told


def _count_train(artifact: Artifact, n_classes: int) -> list[int]:
    table = artifact.table(_IMAGES, IMAGES, ["label", "split"])
    labels = pc.value_counts(table.filter(pc.equal(table["split"], "train"))["label"])
    found = dict(zip(labels.field("values").to_pylist(), labels.field("counts").to_pylist(), strict=True))
    return [found.get(label, 0) for label in range(n_classes)]
