"""Knows how settings are read from TOML into frozen, typed models, and how what is wrong with them is told."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

S = TypeVar("S", bound=BaseModel)


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the field and the cure in one sentence."""


#: What pydantic says of a wrong shape, in the words of a job file.
_SHAPES: Final = {
    "tuple_type": "must be a list in brackets, as [1, 10]",
    "model_type": "is a section; write its settings as [{0}] in the file or as --set {0}.key=value",
    "string_pattern_mismatch": "must be of lower-case letters, digits and hyphens; a job is called as its file is, "
    "unless the file says name",
}


def read_toml(path: str | Path, examples: str = "jobs/") -> dict[str, Any]:
    """The settings of a TOML file, with the file's name in every error.

    Args:
        examples: the folder of such files that the project brings, for the cure.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `ls {examples}` shows those that come with the project") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; name a .toml file in it") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error


def build(model: type[S], settings: Mapping[str, Any], where: str) -> S:
    """Validate settings, turning pydantic's report into sentences that name field and cure."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(model, where, dict(e)) for e in error.errors())) from error


def _sentence(model: type[BaseModel], where: str, error: dict[str, Any]) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        cure = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{where}: unknown setting {location!r}; {cure}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] in _SHAPES:
        message = _SHAPES[error["type"]].format(location)
    given = "" if isinstance(error["input"], dict | BaseModel) else f", not {error['input']!r}"
    return f"{where}: {location}: {message}{given}" if location else f"{where}: {message}"


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        choices = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        model = choices[0]
    return sorted(model.model_fields)
