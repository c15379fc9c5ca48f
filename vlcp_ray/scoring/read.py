"""Read a distilled set, whatever its form: an export of ours, tensor files, an image folder, parquet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from pyarrow import fs as pafs

from vlcp_ray.exports.dd_ranking import IMAGES
from vlcp_ray.images import Pixels
from vlcp_ray.scoring import exported, folders, scales, tensors, whitening
from vlcp_ray.scoring.class_names import JobClasses
from vlcp_ray.scoring.given import GivenSet, of_arrays
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.io import open_uri
from vlcp_ray.store.uris import public

_MOST_CLIPPED: Final = 0.0005  # of the values: less is not worth a note
_TENSORS: Final = ("labels", "normalised")  # options that only tensor files have


@dataclass(frozen=True)
class Options:
    """How sets are read that do not say everything themselves.

    Args:
        labels: a tensor file with the labels; empty: in the file of the images or beside it.
        classes: a list of classes for class numbers, or `job`.
        normalised: the normalisation of the numbers of a tensor: a name, MEAN/STD, or zca; empty: found.
    """

    labels: str = ""
    classes: str = ""
    normalised: str = ""


@dataclass(frozen=True)
class Known:
    """What is used of the job to read sets.

    Args:
        classes: of the job.
        settings: of its images.
        teacher: the fingerprint of its teacher.
        train_pixels: returns the train split at a size, (n, 3, size, size).
    """

    classes: JobClasses
    settings: Ingest
    teacher: str
    train_pixels: Callable[[int], Pixels]


def read_all(places: Sequence[str], options: Options, known: Known) -> list[GivenSet]:
    """Read sets.

    Args:
        places: a folder, a file or a URI each.

    Raises:
        ConfigError: a set cannot be read, or no set uses an option.
    """
    if not places:
        raise ConfigError("name the sets to score: an image folder, parquet, a tensor file or an export each")
    if options.labels and len(places) > 1:
        raise ConfigError("--labels: it is of one set, and several are scored; score that set alone")
    read = [_read(place, options, known) for place in places]
    for name in (*_TENSORS, "classes"):
        if getattr(options, name) and not any(name in used for _, used in read):
            what = "whose classes are numbers" if name == "classes" else "of tensor files"
            raise ConfigError(f"--{name} is for sets {what}, and none of these is one; leave it out")
    return [given for given, _ in read]


def _read(place: str, options: Options, known: Known) -> tuple[GivenSet, set[str]]:
    """Read a set, and return it with the options that it has used."""
    shown = public(place)
    try:
        filesystem, path = open_uri(place, "the set")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    if is_local and not Path(path).exists():
        raise ConfigError(f"{shown}: there is no such file or folder")
    file = _tensor_file(Path(path)) if is_local else None
    is_exported = file is not None and file.name == IMAGES  # the tensor of an export lies beside its file SET
    facts = exported.read_facts(Artifact(filesystem, str(file.parent) if file and is_exported else path))
    if file is None and path.lower().endswith(tensors.SUFFIXES):
        raise ConfigError(f"{shown}: tensor files are read from a local disk; copy it and its labels first")
    if file is not None:
        return _read_tensors(file, str(file) if str(file) != path else shown, options, known, facts)
    if facts is not None:
        found = exported.read(Artifact(filesystem, path), facts, shown, known.classes, known.teacher, known.settings)
        return found, set()
    source = path if is_local else place
    found = folders.read(source, shown, known.classes, options.classes, known.settings)
    return found, {"classes"} if options.classes else set()


def _tensor_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in tensors.SUFFIXES else None
    return tensors.find_file(path) if path.is_dir() else None


def _read_tensors(
    file: Path, shown: str, options: Options, known: Known, facts: exported.Facts | None
) -> tuple[GivenSet, set[str]]:
    labels_file = Path(options.labels).expanduser() if options.labels else None
    if labels_file is not None and not labels_file.is_file():
        raise ConfigError(f"--labels {options.labels}: there is no such file")
    found = tensors.read(file, labels_file)
    if facts is not None and found.labels.soft is not None:  # the order says the class, the teacher may err
        numbers = np.arange(len(found.images)) * len(facts.classes) // len(found.images)
        labels = replace(found.labels, numbers=numbers)
        if facts.teacher == known.teacher:  # the job computes its soft labels itself
            labels = replace(labels, soft=None, kind=exported.LABELS_OF_JOB)
        found = replace(found, labels=labels)
    names = facts.classes if facts else found.class_names
    listed = _listed(names, options.classes, known, shown)
    _check_labels(found.labels, len(listed), shown)
    scale = _scale(found.images, options.normalised, shown, known)
    pixels, clipped = scale.pixels(found.images)
    if pixels.shape[1] == 1:
        pixels = np.repeat(pixels, 3, 1)
    soft = found.labels.soft
    notes = [] if facts is None else [exported.which(facts)]
    notes += _notes(found, clipped)
    given = of_arrays(
        pixels,
        [listed[number] for number in found.labels.numbers.tolist()],
        known.classes,
        None if soft is None else np.ascontiguousarray(soft[:, np.argsort(listed)]),
        ids=facts.image_ids if facts else (),
        source=shown,
        form=f"tensor {' x '.join(map(str, found.images.shape))}",
        labels=found.labels.kind,
        scale=scale.name,
        notes=tuple(notes),
    )
    if facts is not None:
        given = replace(given, method=facts.method, seed=facts.seed, ipc=facts.ipc)
    return given, {*_TENSORS, *(["classes"] if not names else [])}


def _listed(names: Sequence[str], class_list: str, known: Known, shown: str) -> list[int]:
    """Return the job's label of each class number of a tensor file."""
    if names:
        return known.classes.match(names, shown)
    return known.classes.of_numbers(class_list or known.settings.class_list, shown)


def _check_labels(labels: tensors.Labels, classes: int, shown: str) -> None:
    low, high = int(labels.numbers.min()), int(labels.numbers.max())
    width = labels.width or classes
    if low < 0 or high >= classes or width != classes:
        found = f"{width} numbers each" if width != classes else f"class numbers from {low} to {high}"
        raise ConfigError(f"{shown}: the labels have {found}, and there are {classes} classes, counted from 0")


def _scale(numbers: scales.Numbers, name: str, shown: str, known: Known) -> scales.Scale:
    if name != scales.ZCA:
        return scales.named_scale(numbers, name, shown) if name else scales.find_scale(numbers, shown)
    scales.check_signs(numbers, name, shown)
    height, width = numbers.shape[2:]
    if height != width or numbers.shape[1] == 1 or height > whitening.MAX_SIDE:
        raise ConfigError(
            f"--normalised {name}: the whitening is made of square RGB images of at most {whitening.MAX_SIDE} pixels, "
            f"and those of {shown} are {width} x {height}; save them before whitening"
        )
    train = known.train_pixels(height)
    if len(train) <= 1:
        raise ConfigError(f"--normalised {name}: the job has no train split to make the whitening from")
    made = whitening.fit(train)
    scale = scales.Scale(
        f"{numbers.dtype.name}, ZCA-whitened by the job's {len(train):,} training images, eps {whitening.EPS}",
        inverse=(made.inverse, made.mean),
    )
    scales.check_outside(scale, numbers, name, shown)
    return scale


def _notes(found: tensors.TensorSet, clipped: float) -> list[str]:
    notes = []
    if found.images.dtype.kind == "f":
        text = "its values are rounded to 8 bits"
        if clipped > _MOST_CLIPPED:
            text += f", and {clipped:.1%} of them, outside 0 to 1, are clipped"
        notes.append(text)
    if found.images.shape[1] == 1:
        notes.append("its grey images become RGB")
    if found.labels.soft is not None:
        notes.append("its soft labels are used by rded-stored; minimax takes the class with the largest one")
    return notes
