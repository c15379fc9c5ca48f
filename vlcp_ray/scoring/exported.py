"""Read an export of ours: the rows as they were, with their ids, and which set of which run it is."""

import json
import posixpath
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray import images
from vlcp_ray.exports import SET
from vlcp_ray.exports.dataset import SOFT_LABEL
from vlcp_ray.scoring.class_names import JobClasses
from vlcp_ray.scoring.given import GivenSet, Rows, as_rows, soft_table
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.local_files import leaves, limit_of
from vlcp_ray.sources.samples import MAX_LABEL_BYTES, samples
from vlcp_ray.sources.shards import ShardError, open_shard
from vlcp_ray.sources.tars import Member, Tar, open_tar
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.ingest.check import checker
from vlcp_ray.store import files
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.tables import check_types

_MAX_TEXT: Final = 2**30  # bytes of a list of images
_MAX_SET: Final = 2**24  # bytes of SET
_PART: Final = 1000  # rows of a file
_COLUMNS: Final = ("image", "image_id", "class_name")
_METADATA: Final = "train/metadata.jsonl"


#: What the labels are of an export whose soft labels are those of the job's own teacher, which computes them again.
LABELS_OF_JOB: Final = "those of the job's teacher"


class Row(NamedTuple):
    """An image of an export."""

    image_id: str
    class_name: str
    image: bytes
    soft: tuple[float, ...]


class Facts(NamedTuple):
    """What SET says: which set of which run an export is, and the names of the classes by label.

    Args:
        teacher: the fingerprint of the teacher of its soft labels; empty without any.
        image_ids: of the rows of a tensor; other formats have them beside the images.
    """

    method: str
    seed: int
    ipc: int
    classes: tuple[str, ...]
    teacher: str
    image_ids: tuple[str, ...] = ()


def read_facts(folder: Artifact) -> Facts | None:
    """Read SET, or return None where the folder is no export.

    Raises:
        ConfigError: it is damaged.
    """
    info = folder.filesystem.get_file_info(f"{folder.path}/{SET}")
    if info.type != pafs.FileType.File:
        return None
    place = f"{folder.path}/{SET}"
    try:
        found = json.loads(files.read(folder.filesystem, place, _MAX_SET))
        key = (found["method"], found["seed"], found["ipc"])
        facts = Facts(*key, tuple(found["classes"]), found["teacher"], tuple(found.get("image_ids", ())))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{place}: it is no file of an export ({error}); remove it to read the images alone"
        ) from error
    texts = (facts.method, facts.teacher, *facts.classes, *facts.image_ids)
    numbers = (facts.seed, facts.ipc)
    is_right = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
    if not is_right or not 0 <= facts.seed < 2**31 or not 0 < facts.ipc < 2**31 or not facts.classes:
        raise ConfigError(f"{place}: its values are not those of an export; remove it to read the images alone")
    return facts


def which(facts: Facts) -> str:
    """Say which set of a run an export is."""
    return f"it is the export of the set {facts.method}, seed {facts.seed}, {facts.ipc:,} images per class"


def read(folder: Artifact, facts: Facts, shown: str, classes: JobClasses, teacher: str, settings: Ingest) -> GivenSet:
    """Read an export that has images.

    Args:
        facts: of `read_facts`.
        shown: the folder, without secrets.
        teacher: the fingerprint of the job's teacher: soft labels of it are left out, as the job computes them itself.
        settings: the limits of images.

    Raises:
        ConfigError: a file is missing or damaged, or its classes are not those of the job.
    """
    labels = dict(zip(facts.classes, classes.match(facts.classes, shown), strict=True))
    order = np.argsort([labels[name] for name in facts.classes])
    form, rows = _open(folder, settings)
    found, shares = Rows(len(classes.names)), dict[str, tuple[float, ...]]()
    for row in _checked(rows(), shown, facts, settings):
        found.add(row.image_id, labels[row.class_name], row.image, images.describe(row.image)[1:])
        shares[row.image_id] = row.soft
    classes.check_complete(found.counts, shown)
    is_own = facts.teacher not in ("", teacher)
    soft = soft_table(list(shares), np.array(list(shares.values()), np.float32)[:, order]) if is_own else None

    def tables() -> Iterator[pa.Table]:
        for part in _in_parts(rows()):
            yield as_rows([(row.image_id, labels[row.class_name], row.image) for row in part], classes.names)

    return GivenSet(
        source=shown,
        form=f"a vlcp-ray export, {form}",
        rows=tables,
        content=found.content(soft),
        counts=tuple(found.counts),
        sizes=found.sizes,
        labels=("soft: probabilities" if is_own else LABELS_OF_JOB) if facts.teacher else "class names",
        soft=soft,
        notes=(which(facts),),
        method=facts.method,
        seed=facts.seed,
        ipc=facts.ipc,
    )


def _checked(rows: Iterable[Row], shown: str, facts: Facts, settings: Ingest) -> Iterator[Row]:
    """Yield the rows, once each is known to have an id and a soft label of its own, a class of the export and an image.

    Only an export with a teacher has soft labels.
    """
    seen, check = set[str](), checker(settings.max_pixels, settings.max_seconds)
    shares = len(facts.classes) if facts.teacher else 0
    for part in _in_parts(rows):
        for row, problem in zip(part, check([row.image for row in part]), strict=True):
            if row.class_name not in facts.classes or row.image_id in seen:
                what = "twice" if row.image_id in seen else f"of the class {row.class_name!r}, which {SET} lacks"
                raise ConfigError(f"{shown}: the export has the image {row.image_id} {what}; export the set again")
            seen.add(row.image_id)
            if problem:
                raise ConfigError(f"{shown}: image {row.image_id} cannot be used: {problem[1]}")
            if len(row.soft) != shares:
                raise ConfigError(
                    f"{shown}: the soft label of {row.image_id} has {len(row.soft)} numbers, not {shares}; export the "
                    "set again"
                )
            yield row


def _in_parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while part := list(islice(rows, _PART)):
        yield part


def _open(folder: Artifact, settings: Ingest) -> tuple[str, Callable[[], Iterator[Row]]]:
    """Return the format of an export, and a function that yields its rows."""
    names = {file.path[len(folder.path) + 1 :] for file in folder.files() + folder.files("data")}
    names |= {f"train/{file.name}" for file in folder.files("train", ".jsonl")}
    if _METADATA in names:
        return "imagefolder", lambda: _image_folder(folder, settings)
    tables = sorted(name for name in names if name.startswith("data/") and name.endswith(".parquet"))
    if tables:
        return "parquet", lambda: _parquet(folder, tables, settings)
    tars = sorted(name for name in names if name.endswith(".tar"))
    if tars:
        return "webdataset", lambda: _tars(folder, tars, settings)
    raise ConfigError(
        f"{folder.path}: it has the file {SET} of an export, and none of its images; copy all of its files"
    )


def _image_folder(folder: Artifact, settings: Ingest) -> Iterator[Row]:
    limit = limit_of(folder.filesystem, folder.path, settings.follow_links)
    for line in _read(folder, _METADATA, _MAX_TEXT).splitlines():
        found = _parse(line, folder, _METADATA)
        name = found.get("file_name", "")
        path = posixpath.normpath(f"{folder.path}/train/{name}")
        is_outside = not isinstance(name, str) or not path.startswith(f"{folder.path}/train/")
        if is_outside or leaves(path, limit):
            raise ConfigError(f"{folder.path}/{_METADATA}: it names the file {name!r}, which is outside of the export")
        yield _row(found, _read(folder, f"train/{name}", settings.max_bytes), f"{folder.path}/{_METADATA}")


def _parquet(folder: Artifact, names: list[str], settings: Ingest) -> Iterator[Row]:
    from pyarrow import parquet

    limit = limit_of(folder.filesystem, folder.path, settings.follow_links)
    for name in names:
        place = f"{folder.path}/{name}"
        with _naming(place), open_shard(folder.filesystem, place, limit) as shard:
            try:
                file = parquet.ParquetFile(shard, pre_buffer=False)
                columns = [*_COLUMNS, *([SOFT_LABEL] if SOFT_LABEL in file.schema_arrow.names else [])]
                check_types(file.schema_arrow, columns, place, "export the set again")
                for batch in file.iter_batches(100, columns=columns, use_threads=False):
                    yield from (_row_of_table(found, settings, place) for found in batch.to_pylist())
            except ConfigError:
                raise
            except (pa.ArrowException, ValueError, OSError) as error:
                raise shard.damage(error) from error


def _row_of_table(found: Mapping[str, Any], settings: Ingest, place: str) -> Row:
    column = found.get("image")
    image = column.get("bytes") if isinstance(column, dict) else None
    if not isinstance(image, bytes):
        raise ConfigError(f"{place}: the image {found.get('image_id')} has no bytes; export the set again")
    _check_size(len(image), settings.max_bytes, f"{place}: the image {found.get('image_id')}")
    return _row(found, image, place)


def _tars(folder: Artifact, names: list[str], settings: Ingest) -> Iterator[Row]:
    limit = limit_of(folder.filesystem, folder.path, settings.follow_links)
    for name in names:
        place = f"{folder.path}/{name}"
        with _naming(place):
            tar = open_tar(folder.filesystem, place, limit)
            for sample in samples(tar, settings.max_bytes):
                text, image = sample.members.get("json"), sample.image() or sample.members.get("img")
                if text is None or image is None:
                    raise ShardError(f"the sample {sample.key} has no image or no json")
                found = _parse(_read_member(tar, text, MAX_LABEL_BYTES, place), folder, name)
                yield _row(found, _read_member(tar, image, settings.max_bytes, place), place)
            if error := tar.error_at_end():
                raise ShardError(error)


def _read_member(tar: Tar, member: Member, most: int, place: str) -> bytes:
    if member.content is None:
        raise ShardError(f"{member.name} is {member.problem}")
    _check_size(member.content.size, most, f"{place}: {member.name}")
    return tar.read(member.content)


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Turn the error of a damaged file into one that names it."""
    try:
        yield
    except ShardError as error:
        raise ConfigError(f"{place}: it cannot be read ({error}); export the set again") from error


def _read(folder: Artifact, name: str, most: int) -> bytes:
    path = f"{folder.path}/{name}"
    try:
        content = files.read(folder.filesystem, path, most)
    except OSError as error:
        raise ConfigError(
            f"{path}: it cannot be read ({error.strerror or error}); copy all files of the export"
        ) from error
    _check_size(len(content), most, path)
    return content


def _check_size(size: int, most: int, place: str) -> None:
    if size > most:
        raise ConfigError(f"{place} has more than {most:,} bytes; of an image ingest.max_bytes is the limit")


def _parse(text: bytes, folder: Artifact, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{folder.path}/{name}: it has a line that is no JSON ({error}); export the set again"
        ) from error
    return found if isinstance(found, dict) else {}


def _row(found: Mapping[str, Any], image: bytes, place: str) -> Row:
    texts = [found.get(name) for name in ("image_id", "class_name")]
    soft = found.get(SOFT_LABEL) or ()
    # JSON may have whole numbers that are too large for a float, and floats that are NaN or infinite.
    is_soft = isinstance(soft, list | tuple) and all(
        isinstance(share, float | int) and abs(share) <= sys.float_info.max for share in soft
    )
    if not all(isinstance(text, str) and text for text in texts) or not is_soft:
        raise ConfigError(f"{place}: a row has no image_id or class_name, or a soft label that is no list of numbers")
    return Row(str(texts[0]), str(texts[1]), image, tuple(soft))
