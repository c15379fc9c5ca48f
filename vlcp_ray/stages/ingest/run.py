"""ingest: read the parts of an image set on many workers, check every row, and write IMAGES and REJECTED."""

import json
import posixpath
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import ray

from vlcp_ray.engine.context import Context
from vlcp_ray.engine.tasks import in_flight, run_remote, task
from vlcp_ray.engine.writing import REJECTED_TABLE, WriteRows, complete_rows, count_rows, done_ids
from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.monitoring.progress import log_line
from vlcp_ray.schemas import IMAGES, REJECTED
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import hub, open_source
from vlcp_ray.sources.reader import Part, Source
from vlcp_ray.stages.ingest import CLASSES, STAGE, compare_expected, format_sample, format_skipped
from vlcp_ray.stages.ingest.duplicates import reject_duplicates
from vlcp_ray.stages.ingest.label import LabelRows
from vlcp_ray.stages.ingest.reuse import copy_part, find_reusable
from vlcp_ray.stages.ingest.sample import OthersDone, Sample, is_sample, sample_part
from vlcp_ray.store.artifact import Artifact, Step, part_name

_IMAGES: Final = "images"
_PARTS: Final = "parts"
#: The name of the artifact whose images were copied.
_COPIED: Final = "copied-from.txt"
#: The record of a part that was read: its number of wanted rows, how many of them were written before, and the number
#: of files that were not read by their suffix, as JSON.
_PART_RECORD: Final = pa.schema(
    [(name, pa.string()) for name in ("path", "split", "skipped")] + [(name, pa.int64()) for name in ("rows", "done")]
)
_MAX_REASONS: Final = 10


def run(context: Context, steps: Sequence[Step]) -> None:
    """Read the image set as IMAGES and REJECTED."""
    (step,) = steps
    settings, start, artifact = context.job.ingest, time.monotonic(), context.artifact(step)
    source = open_source(settings)
    _, commit = hub.at_commit(settings.source, settings.revision)
    parts = [part for part in source.parts() if part.split != "val" or not settings.val_fraction]
    if not parts:
        raise ConfigError(
            "ingest.source: the image set has no train split; put `train` into the names of its folders or files"
        )
    chosen = _choose(context, step, source, parts) if is_sample(settings) else dict.fromkeys(range(len(parts)))
    classes = [list(source.classes.keys), list(source.classes.names)]
    identity = json.dumps([*classes, commit] if commit else classes).encode()
    if artifact.read_bytes(CLASSES) is None:
        _reuse(context, step, identity)
    _delete_stale(artifact, identity)
    label = LabelRows(settings, source.classes.keys, source.classes.names)
    write = WriteRows({"": artifact}, STAGE.name, _IMAGES, IMAGES, "source")
    done_before = count_rows(write, artifact)["ids"]
    read = ReadPart(source, label, write, artifact)
    wanted = [(parts[number], sources) for number, sources in chosen.items()]
    _read_parts(context, step, wanted, read, done_before)
    if (lost := done_before - _still_there(artifact)) and (copied := artifact.read_bytes(_COPIED)):
        log_line(step.title, f"{lost:,} images of {copied.decode()} are no longer in the image set: all are read again")
        _delete_all(artifact)
        _read_parts(context, step, wanted, read, done_before := 0)
    run_remote(reject_duplicates, artifact)
    _check_rejected(step, artifact, settings.max_rejected)
    _complete(context, step, write, source.classes.names, done_before, start)


def _reuse(context: Context, step: Step, identity: bytes) -> None:
    """Copy the images of an artifact that has other splits; they are then neither read nor decoded again.

    Args:
        identity: the content of `CLASSES`; an artifact with the same one is copied.
    """
    artifact, pool = context.artifact(step), context.scale.ingest
    found = find_reusable(context.store, step, context.job.ingest)
    same = next((one for one in found if one[0].read_bytes(CLASSES) == identity), None)
    if same is None:
        return
    if artifact.parts(_IMAGES):  # an interrupted copy, perhaps of another artifact
        artifact.delete(_IMAGES)
    (earlier, had), copy, wanted = same, task(copy_part, pool), context.job.ingest.val_fraction
    submit = (partial(copy.remote, earlier, part, had, artifact, wanted) for part in earlier.parts(_IMAGES))
    copied = sum(in_flight(submit, pool.num_workers))
    artifact.write_bytes(_COPIED, posixpath.basename(earlier.path).encode())
    artifact.write_bytes(CLASSES, identity)
    log_line(
        step.title,
        f"{copied:,} images are copied from {earlier.path}, with other splits; if the image set has changed since, "
        f"delete that folder and {artifact.path}",
    )


def _still_there(artifact: Artifact) -> int:
    """Count the rows of earlier attempts, or of the artifact that was copied, that the image set still has."""
    return int(pc.sum(artifact.table(_PARTS, _PART_RECORD, ["done"])["done"]).as_py() or 0)


def _delete_all(artifact: Artifact) -> None:
    """Delete all rows, and the note that they were copied."""
    for folder in (_PARTS, REJECTED_TABLE, _IMAGES):
        if artifact.parts(folder):
            artifact.delete(folder)
    artifact.delete_files([file for file in artifact.files() if file.name == _COPIED])


def _delete_stale(artifact: Artifact, identity: bytes) -> None:
    """Delete what an interrupted attempt has written; good rows are kept if the set is the same.

    Rejected rows are read again, because their files may have been fixed.

    Args:
        identity: the content of `CLASSES`.
    """
    is_same = artifact.read_bytes(CLASSES) == identity
    for folder in (_PARTS, REJECTED_TABLE) if is_same else (_PARTS, REJECTED_TABLE, _IMAGES):
        if artifact.parts(folder):
            artifact.delete(folder)
    artifact.write_bytes(CLASSES, identity)


def _choose(context: Context, step: Step, source: Source, parts: Sequence[Part]) -> dict[int, frozenset[str] | None]:
    """List all parts on the workers, and return the sources of the chosen images of each part that has some."""
    settings, pool, sample = context.job.ingest, context.scale.ingest, Sample()
    list_part, reference = task(sample_part, pool), ray.put(source)
    submit = (partial(list_part.remote, reference, settings, number, part) for number, part in enumerate(parts))
    for found in in_flight(submit, pool.num_workers):
        sample.add(found, settings)
    log_line(step.title, f"a sample: {format_sample(settings)}")
    if sample.damaged:
        log_line(step.title, f"{len(sample.damaged)} parts are damaged, e.g. {min(sample.damaged)}")
    return dict(sample.sources())


def _read_parts(
    context: Context,
    step: Step,
    parts: Sequence[tuple[Part, frozenset[str] | None]],
    read: "ReadPart",
    done_before: int,
) -> None:
    """Read all parts, or the chosen sources of each, on the workers, as many at a time as the pool has."""
    pool, reference, done = context.scale.ingest, ray.put(read), done_ids(read.write, read.artifact)
    read_part = task(ReadPart.__call__, pool)
    submit = (partial(read_part.remote, reference, part, done, chosen) for part, chosen in parts)
    with context.progress([step], None, "rows", done_before) as progress:
        for rows, rejected, peaks in in_flight(submit, pool.num_workers):
            progress.add(rows, rejected=rejected, peaks=peaks)


@dataclass(frozen=True)
class ReadPart:
    """Read, label and write the rows of one part, and record in the artifact how many it has."""

    source: Source
    label: LabelRows
    write: WriteRows
    artifact: Artifact

    def __call__(self, part: Part, done: pa.Array, chosen: frozenset[str] | None = None) -> tuple[int, int, Peaks]:
        """Read a part.

        Args:
            done: the sources of the rows of all parts that are written already.
            chosen: the sources that are read; None: all.

        Returns the numbers of new rows and of rejected rows, and the worker's memory peaks.
        """
        done_rows, rows, rejected, skipped = DoneRows(done, part), 0, 0, Counter[str]()
        reset_peaks(STAGE.name)
        left_out = done_rows if chosen is None else OthersDone(chosen, done_rows)
        for table in self.source.read(part, left_out, skipped):
            if self.label.settings.val_fraction:  # a list may hold rows of both splits
                table = table.filter(pc.not_equal(table["split"], "val"))
            rows += len(table)
            rejected += self.write(self.label(table))["rejected"][0].as_py()
        texts = [part.path, part.split, json.dumps(skipped)]
        counts = [rows + done_rows.hits, done_rows.hits]
        record = pa.table([[value] for value in (*texts, *counts)], schema=_PART_RECORD)
        self.artifact.write_table(f"{_PARTS}/{part_name(map(str, asdict(part).values()))}", record)
        return rows, rejected, measure_peaks()


class DoneRows:
    """The sources of a part's written rows; `in` counts those that are still in the part."""

    def __init__(self, sources: pa.Array, part: Part) -> None:
        of_part = sources.filter(pc.starts_with(sources, part.path))
        self.sources, self.hits = frozenset(of_part.to_pylist()), 0

    def __contains__(self, source: object) -> bool:
        is_done = source in self.sources
        self.hits += is_done
        return is_done


def _check_rejected(step: Step, artifact: Artifact, limit: float) -> None:
    """Log the rejected rows, or end the run if they are too many.

    Raises:
        ValueError: there are no rows, or the share of rejected rows is above the limit.
    """
    rows = int(pc.sum(artifact.table(_PARTS, _PART_RECORD, ["rows"])["rows"]).as_py() or 0)
    rejected, reasons = run_remote(_count_reasons, artifact)
    if rows == 0:
        raise ValueError(
            "ingest: the image set has no image of the wanted classes; compare ingest.source and ingest.classes with "
            "the layout and the number of classes in the log line above"
        )
    summary = f"{rejected:,} of {rows:,} rows {'was' if rejected == 1 else 'were'} rejected ({rejected / rows:.1%})"
    if rejected > limit * rows:
        raise ValueError(
            f"ingest: {summary}, more than ingest.max_rejected ({limit:.1%}): {'; '.join(reasons)}. Fix the files and "
            "re-run the same command, or raise ingest.max_rejected; all rejected rows are in "
            f"{artifact.path}/{REJECTED_TABLE}"
        )
    if rejected:
        log_line(step.title, f"{summary}: {'; '.join(reasons)}")


def _count_reasons(artifact: Artifact) -> tuple[int, list[str]]:
    """Count the rejected rows, and list the most frequent reasons, each with its first row as an example."""
    rows = artifact.table(REJECTED_TABLE, REJECTED, ["reason", "detail", "source"]).sort_by("source")
    by_reason: dict[str, list[int]] = {}
    for row, reason in enumerate(rows["reason"].to_pylist()):
        by_reason.setdefault(reason, []).append(row)
    most_frequent = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))[:_MAX_REASONS]
    texts = []
    for reason, members in most_frequent:
        example = rows.slice(members[0], 1).to_pylist()[0]
        texts.append(f"{len(members):,} x {reason} (e.g. {example['source']}: {example['detail']})")
    return len(rows), texts


def _complete(
    context: Context,
    step: Step,
    write: WriteRows,
    class_names: Sequence[str],
    done_before: int,
    start: float,
) -> None:
    """Complete IMAGES, with the class names and the images of each class in its manifest.

    Args:
        done_before: rows of an earlier attempt, or of the artifact that was copied.

    Raises:
        ValueError: the image set has lost rows since an earlier attempt.
    """
    artifact = context.artifact(step)
    train, val = run_remote(_count_classes, artifact, len(class_names))
    if warning := compare_expected(context.job.ingest, sum(train), sum(val)):
        log_line(step.title, warning)
    records = artifact.table(_PARTS, _PART_RECORD)
    if lost := done_before - _still_there(artifact):
        raise ValueError(
            f"ingest: {lost} rows that an earlier attempt has read are no longer in the image set; delete "
            f"{artifact.path} and re-run the same command"
        )
    skipped = sum((Counter(json.loads(text)) for text in records["skipped"].to_pylist()), Counter[str]())
    if skipped:
        log_line(step.title, f"not read: {format_skipped(skipped)}")
    facts = {"class_names": class_names, "train": train, "val": val, "seconds": time.monotonic() - start}
    facts |= {"skipped": dict(skipped.most_common())} if skipped else {}
    if commit := hub.at_commit(context.job.ingest.source, context.job.ingest.revision)[1]:
        facts["commit"] = commit
    complete_rows(context, step, write, int(pc.sum(records["rows"]).as_py()), facts)


def _count_classes(artifact: Artifact, n_classes: int) -> tuple[list[int], list[int]]:
    """Count the train and the val images of each class."""
    table = artifact.table(_IMAGES, IMAGES, ["label", "split"])
    return _count_labels(table, "train", n_classes), _count_labels(table, "val", n_classes)


def _count_labels(table: pa.Table, split: str, n_classes: int) -> list[int]:
    counts = pc.value_counts(table.filter(pc.equal(table["split"], split))["label"])
    by_label = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    return [by_label.get(label, 0) for label in range(n_classes)]
