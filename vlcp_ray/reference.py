"""Write the reference of settings and tables: `python -m vlcp_ray.reference > REFERENCE.md`."""

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vlcp_ray import schemas
from vlcp_ray.config import Job
from vlcp_ray.images import RULES
from vlcp_ray.methods import METHODS
from vlcp_ray.models.families import BASE_MODELS, CAPTIONERS, PREDICTIONS, TESTED, BaseModels
from vlcp_ray.models.networks import NETWORKS, OWN, TEACHER_NORM, Network
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.scale import Pool, Prices, Scale, pools
from vlcp_ray.scoring.scales import NORMALISATIONS, ZCA
from vlcp_ray.scoring.whitening import EPS
from vlcp_ray.settings import OneOf
from vlcp_ray.sources import LAYOUTS
from vlcp_ray.stages import STAGES

_HEAD: Final = """# Settings and tables

Written by `python -m vlcp_ray.reference > REFERENCE.md` from the settings and tables of the stages, from `scale.py`
and from the lists of methods, protocols and layouts.
"""
#: What was measured of an artifact or a set, and where it stands.
_MEASURED: Final = {
    "`seconds` in manifest.json": "wall-clock time of the run that completed the artifact. Artifacts that are made at "
    "once share the time: by the seconds of their trials (evaluate; those of an interrupted run are added, divided by "
    "the number of workers), of their clustering (prototype) or of their method (select, by class), by their rows "
    "(generate, other sets of select), or by the number of trainings at a time (finetune). Artifacts made by a version "
    "that wrote no seconds of trials keep their equal parts",
    "`scale` in manifest.json": "the pools of the run; that of the stage has the workers that made the artifact",
    "`gpu_seconds` in `report --json`": "of a distilled set and all that it is made from, but the images: seconds "
    "times the GPUs of the workers, busy or not. What several sets share is counted in full for each",
    "`cpu_seconds` in `report --json`": "the same with the CPUs of workers that have no GPU",
}


def reference() -> str:
    """Write the page in Markdown."""
    parts = [_HEAD, "## The job file", _settings(Job, "Top of the job file")]
    parts += [_settings(kind, f"[{name}]") for name, kind in _sections(Job)]
    parts += ["## What the names mean"]
    parts += [
        f"### {title}\n\n{_rows(('name', 'what it is'), [(f'`{name}`', text) for name, text in names])}"
        for title, names in _names()
    ]
    parts += ["## The scale file", _settings(Scale, "Top of the scale file")]
    parts.append(_settings(Pool, "each of " + ", ".join(f"[{name}]" for name in pools(Scale()))))
    special = {name: pool for name, pool in pools(Scale()).items() if type(pool) is not Pool}
    parts += [_settings(type(pool), f"[{name}] only", without=Pool) for name, pool in special.items()]
    parts.append(_settings(Prices, "[prices]"))
    parts += ["## The tables", "Shapes are those of Stable Diffusion at 512 pixels. No column has nulls."]
    parts += [_table(name, schema) for name, schema in _tables().items()]
    parts += ["## What is measured", _rows(("name", "meaning"), _MEASURED.items())]
    parts += ["## How pixels are read", _rows(("what an image has", "what becomes of it"), RULES.items())]
    parts += ["### Reasons of REJECTED", _rows(("reason", "meaning"), schemas.REASONS.items())]
    scales = [(f"`{name}`", _numbers(mean), _numbers(std)) for name, (mean, std) in NORMALISATIONS.items()]
    zca = (f"`{ZCA}`", "ZCA-whitened by the job's train split", f"eps {EPS}, as `kornia.enhance.ZCAWhitening`")
    parts += ["## How tensors of images are normalised", _rows(("score --normalised", "mean", "std"), [*scales, zca])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _names() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    yield "Stages", [(stage.name, stage.summary) for stage in STAGES.values()]
    yield "Methods", [(method.name, f"{method.summary} ({method.source})") for method in METHODS.values()]
    yield "Families of base models", [(one.name, _family(one)) for one in BASE_MODELS]
    yield "Protocols", [(protocol.name, protocol.summary) for protocol in PROTOCOLS.values()]
    yield "Networks", _networks()
    yield "Captioners", [(kind, _captioners(kind)) for kind in CAPTIONERS]
    yield "Layouts", [(layout.name, f"`{layout.summary}`") for layout in LAYOUTS.values()]


def _captioners(kind: str) -> str:
    """Say which models have a model_type, and whether one of them is in the tests."""
    title, model = CAPTIONERS[kind]
    tested = "in the tests with a tiny model" if kind in TESTED else "not in the tests"
    return f"`model_type` of {title}, such as {model}; {tested}"


def _family(family: BaseModels) -> str:
    """Say how a family of base models is found, and what its models predict."""
    classes = " or ".join(f"`{name}`" for name in family.pipelines)
    predicts = " or ".join(f"`{name}`" for name in PREDICTIONS)
    return f"model_index.json names {classes}; the scheduler's prediction_type is {predicts}"


def _networks() -> list[tuple[str, str]]:
    """Return the networks, those of torchvision that take the same images in one row."""
    by_meaning: dict[str, list[str]] = {}
    for network in NETWORKS.values():
        if network.is_of_torchvision:
            size = f"{network.smallest[TEACHER_NORM]} pixels or more"
            size += f", a multiple of {network.multiple}" if network.multiple > 1 else ""
            norm = {"batch": "batch norm", "layer": "layer norm", "none": "no norm"}[network.own_norm]
            student = "" if network.can_teach else "; not as a teacher"
            by_meaning.setdefault(f"of torchvision: {size}, {norm}{student}", []).append(network.name)
    names = {"`, `".join(names): meaning for meaning, names in by_meaning.items()}
    smallest = {"`, `".join(OWN): _smallest(OWN.values())}
    return [*smallest.items(), *names.items()]


def _smallest(networks: Iterable[Network]) -> str:
    sizes = ", ".join(f"{one.name} {one.smallest['instance']} and {one.smallest['batch']}" for one in networks)
    return f"of the released protocols; pixels or more with instance and with batch norm: {sizes}"


def _tables() -> dict[str, pa.Schema]:
    """Return every table by its name in capitals, in the order of the stages that write it."""
    tables = {name.upper(): schema for stage in STAGES.values() for name, schema in stage.tables.items()}
    return tables | {"REJECTED": schemas.REJECTED}


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):  # also of an optional section
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield name, kind
                yield from ((f"{name}.{inner}", section) for inner, section in _sections(kind))


def _settings(model: type[BaseModel], title: str, without: type[BaseModel] = BaseModel) -> str:
    """Write the settings of a model but those that it has from `without`."""
    summary = (model.__doc__ or "").strip().splitlines()[0]
    inner = dict(_sections(model))
    rows = [
        (f"`{name}`", _default(field, model), _type(field), field.description or "")
        for name, field in model.model_fields.items()
        if name not in inner and name not in without.model_fields
    ]
    return f"### {title}\n\n{summary}\n\n{_rows(('setting', 'default', 'values', 'meaning'), rows)}"


def _default(field: FieldInfo, model: type[BaseModel]) -> str:
    if field.is_required():
        return "the file's name" if model is Job else "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(field: FieldInfo) -> str:
    """Return the names that a field takes, or its type and its bounds."""
    if names := [rule for rule in field.metadata if isinstance(rule, OneOf)]:
        return _kind(names[0])
    rules = [(rule, name, sign) for rule in field.metadata for name, sign in _BOUNDS if hasattr(rule, name)]
    return ", ".join([_kind(field.annotation), *(f"{sign} {getattr(rule, name)}" for rule, name, sign in rules)])


def _kind(kind: Any) -> str:
    """Return a type in words: its name, the values of a literal, what a list holds."""
    if isinstance(kind, str):
        return f"`{kind}`"
    if isinstance(kind, OneOf):
        if kind.title:
            return f"{kind.title.lower()} (listed below)"
        return ", ".join(f"`{name}`" for name in kind)
    if get_origin(kind) is Annotated and (names := [rule for rule in get_args(kind) if isinstance(rule, OneOf)]):
        return _kind(names[0])
    inner = [_kind(part) for part in get_args(kind) if isinstance(part, (str, type)) or get_args(part)]
    inner = [part for part in inner if part not in ("NoneType", "")]
    if get_origin(kind) is tuple:
        return f"list of {inner[0]}"
    return ", ".join(inner) or str(getattr(kind, "__name__", ""))


_BOUNDS: Final = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="), ("multiple_of", "multiple of"))


def _table(name: str, schema: pa.Schema) -> str:
    rows = [(f"`{field.name}`", f"`{field.type}`", field.metadata[b"meaning"].decode()) for field in schema]
    return f"### {name}\n\n{_rows(('column', 'type', 'meaning'), rows)}"


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(reference(), end="")
