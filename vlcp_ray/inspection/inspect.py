"""Recognise an image set, count its classes and look at some images, without Ray and in seconds."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from threading import Thread
from typing import Any, Final, NamedTuple

from vlcp_ray import images
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import hub, open_source, recognise
from vlcp_ray.sources.classes import only_numbers
from vlcp_ray.sources.reader import Part, Source
from vlcp_ray.stages.ingest import Ingest, check_images, check_source, compare_expected, format_sample, format_skipped
from vlcp_ray.stages.ingest.check import checker
from vlcp_ray.store.uris import public, redact

#: Seconds after which no other part is begun.
COUNTING: Final = 30.0
_SHORT_COUNTING: Final = 2.0
_REMOTE_WAIT: Final = 10.0  # seconds for a store
_TABLES: Final = ("parquet", "arrow")
#: Layouts whose images are counted by reading more than names of files.
_READ: Final = (*_TABLES, "webdataset")
_THREADS: Final = 16  # each waits for the disk or the network
_SHOWN_CLASSES: Final = 20  # with examples
_EXAMPLES: Final = 4  # of a class
_SHOWN_PARTS: Final = 2  # where a part has images of all classes
_LISTED: Final = 40  # classes on a terminal


@dataclass(frozen=True)
class ClassCounts:
    """A class: its key in the set, its name in prompts, and how many images of each split it has."""

    key: str
    name: str
    train: int
    val: int


@dataclass(frozen=True)
class Example:
    """An image of the set: its class key, its file, its bytes, and its format and size, or why it is no image."""

    key: str
    source: str
    content: bytes = field(repr=False)
    kind: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """What an image set is.

    Args:
        source: where it is from, without secrets.
        layout: its name, "" if none was recognised.
        description: the layout, the splits and the number of classes.
        classes: in the order of their labels.
        unlabelled: images without a label, which ingest rejects.
        unknown: images of classes that are not in the class list, which ingest rejects.
        skipped: the number of files that are not read, by suffix.
        unexpected: that the numbers of images are not those that the job expects, or "".
        parts: how many parts of the set were counted, and how many there are.
        used: which of the images are used, or "" for all.
        problems: why `run` would refuse it, or what is damaged.
        is_refused: whether `run` would refuse it.
        examples: images of the first classes.
    """

    source: str
    layout: str = ""
    description: str = ""
    classes: Sequence[ClassCounts] = ()
    unlabelled: int = 0
    unknown: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    unexpected: str = ""
    parts: tuple[int, int] = (0, 0)
    used: str = ""
    problems: Sequence[str] = ()
    is_refused: bool = False
    examples: Sequence[Example] = field(default=(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return everything but the bytes of the examples."""
        fields = asdict(self) | {"examples": []}
        fields["examples"] = [{k: v for k, v in asdict(one).items() if k != "content"} for one in self.examples]
        return fields

    def lines(self) -> Iterator[str]:
        """Yield the lines for a terminal."""
        if self.layout:
            yield printable(f"{self.source} is {self.description}")
            yield from self._count_lines()
        for problem in self.problems:
            yield printable(f"problem: {problem}")

    def short_lines(self) -> Iterator[str]:
        """Yield the lines that `plan` and `run` begin with."""
        if self.layout:
            about = f"; {self._images()}" if self.parts[0] else ""
            yield printable(f"{self.source} is {self.description}{about}{self.used and f'; {self.used}'}")
            yield from self._notes()
        for problem in self.problems:
            yield printable(f"problem: {problem}")

    def _images(self) -> str:
        counted, parts = self.parts
        about = "" if counted == parts else f" in {counted:,} of {parts:,} parts"
        return f"{format_images(sum(c.train for c in self.classes), sum(c.val for c in self.classes))}{about}"

    def _notes(self) -> Iterator[str]:
        if self.skipped:
            yield printable(f"not read: {format_skipped(self.skipped)}")
        if warning := only_numbers([one.name for one in self.classes]):
            yield warning
        if self.unexpected:
            yield self.unexpected
        if self.unlabelled:
            yield f"{self.unlabelled:,} images have no label: ingest rejects them"
        if self.unknown:
            yield f"{self.unknown:,} images are of classes that are not in the class list: ingest rejects them"

    def _count_lines(self) -> Iterator[str]:
        counted, parts = self.parts
        yield f"{self._images()}{'' if counted == parts else f', which were counted in {COUNTING:g} s'}"
        if self.used:
            yield self.used
        yield ""
        width = max([len("class"), *(len(printable(one.key)) for one in self.classes[:_LISTED])])
        yield f"{'class':<{width}} {'train':>9} {'val':>9}  name in prompts"
        for one in self.classes[:_LISTED]:
            yield f"{printable(one.key):<{width}} {one.train:>9,} {one.val:>9,}  {printable(one.name)}"
        if len(self.classes) > _LISTED:
            yield f"... and {len(self.classes) - _LISTED:,} more"
        yield ""
        if sizes := [(one.width, one.height) for one in self.examples if one.kind]:
            kinds = Counter(one.kind for one in self.examples if one.kind)
            small, large = (choose(sizes, key=lambda size: size[0] * size[1]) for choose in (min, max))
            shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            yield f"a sample: {shown}; from {small[0]} x {small[1]} to {large[0]} x {large[1]} pixels"
        yield from self._notes()


def format_images(train: int, val: int) -> str:
    """Format the numbers of images: "9,469 train and 3,925 val images"."""
    return f"{train:,} train and {val:,} val images"


def inspect(settings: Ingest, ipc: int = 1, seconds: float = COUNTING) -> Inspection:
    """Look at an image set from which sets are to be distilled and evaluated.

    Args:
        ipc: images per class of the largest set.
        seconds: after which no other part is counted.
    """
    try:
        source = open_source(settings)
        parts = _used_parts(source, settings)
        counts = _count(source, settings, parts, time.monotonic() + seconds)
        examples = list(_examples(source, parts, settings))
    except ConfigError as error:
        return _refused(settings, error)
    return _inspection(source, settings, counts, len(parts), ipc, needs_val=True, examples=examples)


def inspect_names(settings: Ingest, ipc: int, needs_val: bool, counting: float = _SHORT_COUNTING) -> Inspection:
    """Look at an image set in two seconds: its images are counted where names of files tell, and none is read.

    Args:
        ipc: images per class of the largest set; 0 if none is made.
        needs_val: whether val images are needed.
        counting: seconds in which images are counted.
    """
    try:
        source = open_source(settings)
        parts = _used_parts(source, settings)
        end = time.monotonic() + (0 if source.layout in _READ else counting)
        counts = _count(source, settings, parts, end)
    except ConfigError as error:
        return _refused(settings, error)
    return _inspection(source, settings, counts, len(parts), ipc, needs_val)


def inspect_without_reading(settings: Ingest, ipc: int) -> Inspection:
    """Look at an image set as `inspect_names` does, but wait for no store, and read no labels among the images."""
    if "://" not in settings.source:
        return _inspect_without_reading(settings, ipc)
    found: Future[Inspection] = Future()

    def work() -> None:
        try:
            found.set_result(_inspect_without_reading(settings, ipc))
        except BaseException as error:
            found.set_exception(error)

    Thread(target=work, daemon=True).start()  # an executor would wait for it at the end of the process
    try:
        return found.result(_REMOTE_WAIT)
    except TimeoutError:
        problem = f"ingest.source: {public(settings.source)} has not answered in {_REMOTE_WAIT:g} s"
        return Inspection(public(settings.source), problems=[problem])


def _inspect_without_reading(settings: Ingest, ipc: int) -> Inspection:
    try:
        layout = recognise(settings)
    except ConfigError as error:
        return _refused(settings, error)
    if layout.reads_all and not settings.classes and not settings.class_list:
        text = f"in the layout {layout.name}; its classes are in its labels, which a run reads"
        return Inspection(public(settings.source), layout.name, text, used=_used(settings))
    return inspect_names(settings, ipc, True, 0 if layout.embedded else _SHORT_COUNTING)


def _refused(settings: Ingest, error: ConfigError) -> Inspection:
    return Inspection(public(settings.source), problems=[redact(str(error))], is_refused=True)


def _used_parts(source: Source, settings: Ingest) -> list[Part]:
    """List the parts that ingest reads: with `val_fraction` those of train only."""
    return [part for part in source.parts() if part.split != "val" or not settings.val_fraction]


def _used(settings: Ingest) -> str:
    """Return which of the images are used, or "" for all."""
    sample, share = format_sample(settings), settings.val_fraction
    return "; ".join([f"used are {sample}"] * bool(sample) + [f"{share:.4g} of train becomes val"] * bool(share))


def _inspection(
    source: Source,
    settings: Ingest,
    counted: "_Counts",
    parts: int,
    ipc: int,
    needs_val: bool,
    examples: Sequence[Example] = (),
) -> Inspection:
    counts = counted.images
    known = dict(zip(source.classes.keys, source.classes.names, strict=True))
    classes = [ClassCounts(key, name, counts["train", key], counts["val", key]) for key, name in known.items()]
    others = Counter({key: count for (_, key), count in counts.items() if key not in known})
    unlabelled = others.pop("", 0)
    refused = _refusal(
        settings, classes, counted.skipped, ipc, needs_val, is_whole=counted.parts == parts and not counted.damaged
    )
    totals = [sum(getattr(one, split) for one in classes) for split in ("train", "val")]
    _, commit = hub.at_commit(settings.source, settings.revision)
    return Inspection(
        source=public(settings.source),
        layout=source.layout,
        description=f"{source.description}{commit and f', at commit {commit}'}",
        classes=classes,
        unlabelled=unlabelled,
        unknown=others.total(),
        skipped=dict(counted.skipped.most_common()),
        unexpected=compare_expected(settings, *totals) if counted.parts == parts and not counted.damaged else "",
        parts=(counted.parts, parts),
        used=_used(settings),
        problems=[redact(text) for text in ([refused] if refused else []) + counted.damaged],
        is_refused=bool(refused),
        examples=examples,
    )


class _Counts(NamedTuple):
    """The images by split and class key, the files that are not read by suffix, what is damaged, and the parts."""

    images: Counter[tuple[str, str]]
    skipped: Counter[str]
    damaged: list[str]
    parts: int


def _count(source: Source, settings: Ingest, parts: Sequence[Part], end: float) -> _Counts:
    """Count the images of all parts that can be begun before `end`, a time of `time.monotonic`."""

    def count(part: Part) -> tuple[Counter[tuple[str, str]], Counter[str], str] | None:
        if time.monotonic() > end:
            return None
        counts, skipped, damage = Counter[tuple[str, str]](), Counter[str](), ""
        try:
            for image in source.images(part, skipped):
                if image.split != "val" or not settings.val_fraction:
                    counts[image.split, image.class_key] += 1
        except ConfigError:  # of all of the set, as a list that cannot be read
            raise
        except ValueError as error:
            damage = str(error)
        return counts, skipped, damage

    # Reading a table limits the memory of the process, which one thread can do at a time.
    with ThreadPoolExecutor(1 if source.layout in _TABLES else _THREADS) as threads:
        done = [one for one in threads.map(count, parts) if one is not None]
    images_by_class = sum((counts for counts, _, _ in done), Counter[tuple[str, str]]())
    skipped = sum((skipped for _, skipped, _ in done), Counter[str]())
    return _Counts(images_by_class, skipped, [damage for *_, damage in done if damage], len(done))


def _refusal(
    settings: Ingest,
    classes: Sequence[ClassCounts],
    skipped: Counter[str],
    ipc: int,
    needs_val: bool,
    is_whole: bool,
) -> str:
    """Return why `run` would refuse the set, or ""."""
    manifest = {
        "class_names": [one.name for one in classes],
        "train": [one.train for one in classes],
        "val": [one.val for one in classes],
        "splits": {"val": sum(one.val for one in classes)},
        "skipped": dict(skipped),
    }
    try:
        check_source(settings, needs_val)
        if is_whole:
            check_images(manifest, ipc, needs_val and not settings.val_fraction)
    except ConfigError as error:
        return str(error)
    return ""


class _FirstRows:
    """Of a part, the sources of all rows but the first as done: `Source.read` reads no others."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __contains__(self, source: object) -> bool:
        self.left -= 1
        return self.left < 0


def _examples(source: Source, parts: Sequence[Part], settings: Ingest) -> Iterator[Example]:
    """Yield some images of the first classes; they are checked in a process of their own."""
    check = checker(settings.max_pixels, settings.max_seconds)
    found = Counter[str]()
    of_train = [part for part in parts if part.split != "val"]
    for part in islice(of_train, _SHOWN_CLASSES if of_train and of_train[0].class_key else _SHOWN_PARTS):
        rows = _FirstRows(_EXAMPLES if part.class_key else _EXAMPLES * _SHOWN_CLASSES)
        for table in source.read(part, rows):
            for row in table.to_pylist():
                key = row["class_key"]
                if found[key] >= _EXAMPLES or len(found) > _SHOWN_CLASSES:
                    continue
                found[key] += 1
                yield _example(row, (row["reason"], row["detail"]) if row["reason"] else check([row["image"]])[0])


def _example(row: dict[str, Any], problem: tuple[str, str] | None) -> Example:
    if problem:
        return Example(row["class_key"], row["source"], b"", problem=": ".join(problem))
    return Example(row["class_key"], row["source"], row["image"], *images.describe(row["image"]))
