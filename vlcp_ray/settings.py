"""Read settings from TOML into frozen, typed models, with errors that name the field and the fix."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import core_schema

S = TypeVar("S", bound=BaseModel)

Positive: TypeAlias = Annotated[int, Field(gt=0)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
SizeOrZero: TypeAlias = Annotated[int, Field(ge=0, multiple_of=8)]  # pixels; the VAE works on blocks of 8


class Settings(BaseModel):
    """A section of a job or scale file: immutable; unknown fields are an error, defaults are validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the field and the fix in one sentence."""


@dataclass(frozen=True, eq=False)
class OneOf:
    """Require a setting to be a key of `names` or one of `more`, as in `Annotated[str, OneOf(METHODS)]`.

    Args:
        names, more: the values that it can have.
        title: the heading under which the reference lists them, where they are too many for an error or a cell.
        refused: why a value that users may expect is none of them.
    """

    names: Mapping[str, Any]
    more: tuple[str, ...] = ()
    title: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        return iter((*self.names, *self.more))

    def check(self, value: str) -> str:
        """Return the value.

        Raises:
            ValueError: it is none of the names.
        """
        if value in set(self):
            return value
        if value in self.refused:
            raise ValueError(f"must be one of {self._listed()}: {value} {self.refused[value]}")
        if self.title:
            close = difflib.get_close_matches(value, list(self), n=3)
            raise ValueError(f"must be one of {self._listed()}{', such as ' if close else ''}{' or '.join(close)}")
        *most, last = (repr(name) for name in self)
        raise ValueError(f"must be {', '.join(most)} or {last}")

    def _listed(self) -> str:
        return f"the {len(list(self))} {self.title.lower()} that `python -m vlcp_ray.reference` lists"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


def check_unique(settings: BaseModel, *names: str) -> None:
    """Refuse lists that are empty or have a value twice.

    Raises:
        ValueError: names the setting.
    """
    for name in names:
        values = getattr(settings, name)
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be a list of different values, at least one, not {list(values)}")


#: Pydantic's messages on a wrong shape, in the words of a job file.
_SHAPES: Final = {
    "string_too_short": "must be a folder, a file or a URI",
    "tuple_type": "must be a list in brackets, as [1, 10]",
    "model_type": "is a section; write its settings as [{0}] in the file or as --set {0}.key=value",
    "string_pattern_mismatch": "must consist of lower-case letters, digits and hyphens; without one the file's "
    "name is used",
}


#: The folders of files that are part of the package and are named without a path, and what is in them.
SHIPPED: Final = {"jobs": "job", "clusters": "scale file"}
_PACKAGE: Final = Path(__file__).parent


def shipped_files(folder: str) -> dict[str, Path]:
    """Return the TOML files of a folder of SHIPPED by their name: that of the file, or of the folder that it is in."""
    files = {file.stem: file for file in (_PACKAGE / folder).glob("*.toml")}
    files |= {file.parent.name: file for file in (_PACKAGE / folder).glob("*/*.toml")}
    return dict(sorted(files.items()))


def find_file(name: str | Path, folder: str) -> Path:
    """Return the file of a name such as `digits`; what has a slash or ends in .toml is a path and is returned as it is.

    Args:
        folder: a key of SHIPPED.

    Raises:
        ConfigError: the package has no file of this name.
    """
    if "/" in str(name) or str(name).endswith(".toml"):
        return Path(name)
    files = shipped_files(folder)
    if str(name) not in files:
        close = difflib.get_close_matches(str(name), files, n=1)
        fix = f"did you mean {close[0]}?" if close else "`vlcp-ray jobs` lists them; a path has a / or ends in .toml"
        raise ConfigError(f"{name}: no such {SHIPPED[folder]}; {fix}")
    return files[str(name)]


def read_toml(name: str | Path, folder: str) -> dict[str, Any]:
    """Read the settings of a TOML file, with the name as it was given in every error.

    Args:
        name: a path, or the name of a file of the package.
        folder: a key of SHIPPED.
    """
    path = find_file(name, folder)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `vlcp-ray jobs` lists those of the package") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; name a .toml file in it") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error


#: Errors of one file that are shown: where there are more it is another kind of file.
_SHOWN: Final = 3


def build(model: type[S], settings: Mapping[str, Any], where: str) -> S:
    """Validate settings; errors are sentences that name the field and the fix."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        found = [_sentence(model, where, dict(e)) for e in error.errors()]
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise ConfigError("; ".join(found[:_SHOWN] + more)) from error


def _sentence(model: type[BaseModel], where: str, error: dict[str, Any]) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{where}: unknown setting {location!r}; {fix}"
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
