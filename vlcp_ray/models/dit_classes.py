"""The classes that a DiT knows, found by their names, and the groups of classes that one DiT is trained on."""

from collections.abc import Mapping, Sequence
from typing import Final

from vlcp_ray.models.pretrained import dit_names
from vlcp_ray.settings import ConfigError

#: The folder of the artifact with a folder for each group.
CLASSES: Final = "classes"
_SHOWN: Final = 5  # names in an error


def divide(labels: Sequence[int], size: int) -> list[list[int]]:
    """Divide labels into groups of `size` in their order; the last may be smaller."""
    return [list(labels[start : start + size]) for start in range(0, len(labels), size)]


def folder(number: int) -> str:
    """Return the folder of a group within its artifact."""
    return f"{CLASSES}/{number:04d}"


def find(class_names: Sequence[str], model: str) -> list[int]:
    """Return the number that a DiT has for each class.

    Raises:
        ConfigError: it does not know a class.
    """
    return match(class_names, dit_names(model), model)


def match(class_names: Sequence[str], known: Mapping[int, str], model: str) -> list[int]:
    """Return the number of each class: that of the same name, else of the only class that shares one of its names.

    Args:
        class_names: names of classes, of which each may be several with commas between them ("tench, Tinca tinca").
        known: the names of the DiT's classes, by number, in the same form.
        model: for the error.

    Raises:
        ConfigError: a class is none of the DiT's, or could be several of them.
    """
    exact: dict[str, list[int]] = {}
    shared: dict[str, list[int]] = {}
    for number, name in sorted(known.items()):
        exact.setdefault(name.strip().casefold(), []).append(number)
        for one in _names(name):
            shared.setdefault(one, []).append(number)
    found: list[int] = []
    unknown: list[str] = []
    for name in class_names:
        same = exact.get(name.strip().casefold(), [])
        numbers = set(same) if same else {number for one in _names(name) for number in shared.get(one, [])}
        if len(numbers) == 1:
            found.append(*numbers)
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise ConfigError(
            f"compare.minimax.model: {model} does not know {', '.join(map(repr, unknown[:_SHOWN]))}{more}, or has "
            "several classes of that name; give the classes its names in ingest.class_list, or leave minimax out of "
            "compare.methods"
        )
    return found


def _names(name: str) -> list[str]:
    return [part.strip().casefold() for part in name.split(",")]
