"""The job file: the stages' settings as one frozen, typed model, and the rules between its sections."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from vlcp_ray.methods import METHODS
from vlcp_ray.methods.idc import IDC
from vlcp_ray.methods.minimax import Minimax
from vlcp_ray.methods.mode_guidance import ModeGuidance
from vlcp_ray.methods.sre2l import SRe2L
from vlcp_ray.models import pretrained
from vlcp_ray.models.pretrained import DEMO
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.settings import ConfigError, OneOf, Positive, Settings, build, check_unique, read_toml
from vlcp_ray.stages.evaluate import Evaluate
from vlcp_ray.stages.finetune import Finetune
from vlcp_ray.stages.generate import Generate
from vlcp_ray.stages.ingest import STAGE as INGEST
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.pair import Caption, Encode
from vlcp_ray.stages.prototype import Prototype
from vlcp_ray.stages.rank import STAGE as RANK
from vlcp_ray.stages.rank import Rank
from vlcp_ray.stages.teach import Teach

#: Side in pixels of the images of an unknown base model of the hub, as of Stable Diffusion 1.x.
USUAL_RESOLUTION: Final = 512


class Compare(Settings):
    """Which sets are made and evaluated, by the same trials."""

    methods: tuple[Annotated[str, OneOf(METHODS)], ...] = Field(
        ("vlcp", "random", "centroid", "full"), description="the compared methods, listed below"
    )
    d4m_clustering: Literal["mini-batch", "k-means"] = Field(
        "mini-batch",
        description="d4m only: mini-batch: k-means in one pass over batches of ipc images, as D4M's released code; "
        "k-means: full k-means like the other methods, which is not D4M's",
    )
    minimax: Minimax = Minimax()
    mgd3: ModeGuidance = ModeGuidance()
    idc_factor: Literal[2, 3] = Field(2, description="idc only: smaller images in an image, per side")
    sre2l: SRe2L = SRe2L()
    idc: IDC = IDC()

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_unique(self, "methods")
        for name in dict.fromkeys(name for method in METHODS.values() for name in method.options):
            users = [method.name for method in METHODS.values() if name in method.options]
            is_set = getattr(self, name) != type(self).model_fields[name].default
            if is_set and not set(users) & set(self.methods):
                one_of = " or ".join(users)
                raise ValueError(f"{name} is for {one_of} only; add {one_of} to methods or leave it out")
        return self


class Job(Settings):
    """One experiment: what to distil, how, and how to evaluate it. Workers and devices are in the scale."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="name of the job, in reports and exports")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        (0,), description="random seeds; a distilled set for each"
    )
    ipc: tuple[Positive, ...] = Field((10,), description="images per class, one distilled set each")
    base_model: str = Field(
        "benjamin-paine/stable-diffusion-v1-5",
        description="hub id (also owner/name@revision), folder, or demo/stable_diffusion; of the families listed below",
    )
    ingest: Ingest = Ingest()
    caption: Caption = Caption()
    encode: Encode = Encode()
    finetune: Finetune = Finetune()
    prototype: Prototype = Prototype()
    generate: Generate = Generate()
    teach: Teach = Teach()
    rank: Rank = Rank()
    evaluate: Evaluate = Evaluate()
    compare: Compare = Compare()
    #: Whether a size that the job leaves out is USUAL_RESOLUTION, because that of the base model is not known.
    _assumes_resolution: bool = PrivateAttr(False)

    @model_validator(mode="after")
    def _take_resolution(self) -> Self:
        """Take the sizes that the job leaves out from the base model."""
        left_out = [name for name in ("resolution", "train_resolution") if not getattr(self.encode, name)]
        if left_out:
            side = pretrained.expected_resolution(self.base_model)
            sizes = dict.fromkeys(left_out, side or USUAL_RESOLUTION)
            self.__dict__["encode"] = self.encode.model_copy(update=sizes)  # the job itself cannot be changed
            self._assumes_resolution = side is None
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_unique(self, "seeds", "ipc")
        evaluate, size = self.evaluate, self.generate.image_size
        if evaluate.factor > 1 and "rded" not in (*evaluate.protocols, *self.compare.methods):
            raise ValueError("evaluate.factor is for rded only; add rded to protocols or methods, or leave factor out")
        if "rded" in self.compare.methods and size % evaluate.factor:
            raise ValueError(
                f"generate.image_size must be a multiple of evaluate.factor, {evaluate.factor}, not {size}"
            )
        if 0 < self.ingest.max_per_class < max(self.ipc):
            raise ValueError(
                f"ingest.max_per_class, {self.ingest.max_per_class}, is below the largest ipc, {max(self.ipc)}; raise "
                "it or lower ipc"
            )
        trains_full = [name for name in PROTOCOLS if PROTOCOLS[name].trains_full]
        if self.compare.methods == ("full",) and not set(trains_full) & set(evaluate.protocols):
            raise ValueError(
                f"compare.methods: full needs {' or '.join(trains_full)}; add that protocol to evaluate.protocols"
            )
        needs_teacher = any(PROTOCOLS[name].needs_teacher for name in evaluate.protocols)
        if len(self.teach.network) > 1 and not needs_teacher:
            soft = " or ".join(name for name in PROTOCOLS if PROTOCOLS[name].needs_teacher)
            raise ValueError(
                f"teach.network: {len(self.teach.network)} teachers need a protocol with soft labels; add {soft} to "
                "evaluate.protocols, or name one network"
            )
        if needs_teacher and self.teach.input_size != self.evaluate.input_size:
            raise ValueError(
                f"teach.input_size must be evaluate.input_size, {self.evaluate.input_size}, not {self.teach.input_size}"
            )
        return self

    @model_validator(mode="after")
    def _check_rank(self) -> Self:
        ranking = [method.name for method in METHODS.values() if "difficulty" in method.inputs]
        if not set(ranking) & set(self.compare.methods):
            if self.rank != Rank():
                one_of = " or ".join(ranking)
                raise ValueError(f"rank is for {one_of} only; add {one_of} to compare.methods or leave rank out")
        elif self.rank.epochs > self.teach.epochs:
            raise ValueError(
                f"rank.epochs, {self.rank.epochs}, must be at most teach.epochs, {self.teach.epochs}, of which they "
                "are the first; lower it"
            )
        return self

    def model_note(self) -> str:
        """Return a sentence for the readers of the results where the models of the digits get other images; else ""."""
        generates = any(METHODS[name].form in ("generation", "prototypes") for name in self.compare.methods)
        used = [self.base_model] * generates + [self.caption.model] * (generates and self.caption.uses_model)
        used += [self.compare.minimax.model for name in self.compare.methods if METHODS[name].tuning]
        if self.ingest.source == "digits" or not (tiny := [name for name in used if name.startswith(DEMO)]):
            return ""
        return (
            f"{' and '.join(tiny)} {'are tiny models that know' if len(tiny) > 1 else 'is a tiny model that knows'} no "
            "photograph: trained on printed digits and letters only. With other images than the digits this job shows "
            "that everything runs, and nothing about the method; results need real models (base_model, caption.model)."
        )

    def check_resolution(self) -> None:
        """Refuse sizes that were left out where the configuration of a model of the hub, once it is here, has others.

        Raises:
            ConfigError: it names the settings to give.
        """
        side = pretrained.cached_resolution(self.base_model) if self._assumes_resolution else None
        if side not in (None, USUAL_RESOLUTION):
            raise ConfigError(
                f"encode.resolution: {self.base_model} was trained at {side} x {side} pixels (known beforehand of the "
                f"models in jobs/README.md only): set encode.resolution={side} and encode.train_resolution={side}, or "
                "the sizes that are meant"
            )


def load_job(name: str | Path, overrides: Sequence[str] = (), changed: Mapping[str, Any] | None = None) -> Job:
    """Read a job file, by its path or by its name in the package, and change settings.

    Args:
        overrides: `section.key=value`, applied last.
        changed: settings that replace those of the file, as in the file: `{"ingest": {"source": ...}}`.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, a value is out of range.
    """
    file = read_toml(name, "jobs")
    settings = _merge(deepcopy(file), changed or {})
    settings.setdefault("name", Path(name).stem)
    for override in overrides:
        _apply(settings, override)
    return build(Job, _without_unused(settings, file), str(name))


def _without_unused(settings: dict[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """Drop those settings of a job file that are of methods which the caller has taken out of `compare.methods`."""
    compare, before = settings.get("compare"), file.get("compare", {})
    if not isinstance(compare, dict) or compare.get("methods") == before.get("methods"):
        return settings
    left = compare.get("methods")
    kept = [METHODS[name] for name in left if name in METHODS] if isinstance(left, list) else list(METHODS.values())
    used = {option for method in kept for option in method.options}
    options = {option for method in METHODS.values() for option in method.options} - used
    dropped = {name for name in options if name in before and compare.get(name) == before[name]}
    result = settings | {"compare": {name: value for name, value in compare.items() if name not in dropped}}
    uses_rank = any("difficulty" in method.inputs for method in kept)
    if not uses_rank and RANK.name in file and settings.get(RANK.name) == file[RANK.name]:
        del result[RANK.name]
    return result


def _merge(settings: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with those that are changed; sections are merged, and paths are text."""
    merged = dict(settings)
    for name, value in changed.items():
        old = merged.get(name)
        if isinstance(value, Mapping):
            merged[name] = _merge(old if isinstance(old, Mapping) else {}, value)
        else:
            merged[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return merged


def sample_overrides(job: Job, count: int) -> list[str]:
    """Return overrides that read so many images of a class and split: a small run of the same job, beside the full one.

    Distilled sets have at most half as many images per class. A tenth of the images may be bad: one of nine is more
    than one in a hundred.

    Raises:
        ConfigError: the job has such limits itself.
    """
    if job.ingest.max_per_class or job.ingest.max_val_per_class:
        raise ConfigError("--sample: the job sets ingest.max_per_class or max_val_per_class itself; leave one out")
    ipc = sorted({min(one, max(1, count // 2)) for one in job.ipc})
    limits = {"max_per_class": count, "max_val_per_class": count, "max_rejected": max(0.1, job.ingest.max_rejected)}
    images = [f"{INGEST.name}.{name}={value}" for name, value in limits.items()]
    return [f"name={job.name}-sample-{count}", f"ipc={ipc}", *images]


def load_ingest(source: str, overrides: Sequence[str] = ()) -> Ingest:
    """Return the settings of an image set, with `ingest.key=value` overrides.

    Raises:
        ConfigError: a key is unknown, a value is out of range.
    """
    ingest: Ingest = _load_sections(source, overrides, {INGEST.name: Ingest})[INGEST.name]
    return ingest


def load_caption(source: str, overrides: Sequence[str] = ()) -> tuple[Ingest, Caption]:
    """Return the settings of an image set and of its captions, with overrides of both.

    Raises:
        ConfigError: a key is unknown, a value is out of range.
    """
    found = _load_sections(source, overrides, {INGEST.name: Ingest, "caption": Caption})
    return found[INGEST.name], found["caption"]


def _load_sections(source: str, overrides: Sequence[str], sections: Mapping[str, type[Settings]]) -> dict[str, Any]:
    """Return the settings of some sections, without a job."""
    settings: dict[str, Any] = {INGEST.name: {"source": source}}
    for override in overrides:
        _apply(settings, override)
    if others := sorted(set(settings) - set(sections)):
        known = " and ".join(f"{name}.*" for name in sections)
        raise ConfigError(f"--set {others[0]}: of an image set only {known} can be set; give a job file instead")
    return {name: build(section, settings.get(name, {}), name) for name, section in sections.items()}


def _apply(settings: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise ConfigError(f"--set {override}: write --set section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string, so that paths need no quotes within quotes
    *sections, last = key.strip().split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {override}: {section!r} is a value, not a section")
    settings[last] = value
