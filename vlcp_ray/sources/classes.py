"""Classes of an image set: their keys, their names in prompts, and the order of their labels.

A class is identified by its key, never by a position: its wnid where WordNet has one, else its name in the set.
"""

import difflib
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Final

from vlcp_ray.settings import ConfigError
from vlcp_ray.store import files
from vlcp_ray.store.io import AccessError, open_uri, retry

#: Subsets of ImageNet-1K that are packaged, with their classes in the order of the literature.
LISTS: Final = ("imagenette", "imagewoof", "imageidc", "imagenet100", "imagenet1k")
_WNID_LENGTH: Final = 9
#: Names that lists of ImageNet's classes have for those that share a name: the crane that is no bird.
_FORMER: Final = {"n03126707": frozenset({"crane2"})}
_NUMBERED: Final = re.compile(r"(\d{1,9})[._ -]+(\D.*)")


@dataclass(frozen=True)
class Classes:
    """The wanted classes in the order of their labels: their keys, and their names in prompts."""

    keys: tuple[str, ...]
    names: tuple[str, ...]

    def summary(self, total: int) -> str:
        """Format the number of wanted classes, with the total number in the set: "2 of its 3 classes"."""
        wanted = len(self.keys)
        return f"{wanted} of its {total} classes" if wanted < total else f"{total} class{'es' * (total != 1)}"


@dataclass(frozen=True)
class Glossary:
    """The class names and label numbers of keys.

    Args:
        names: key -> class name.
        numbers: the keys in the order of their label numbers; empty if the user gave no list.
    """

    names: Mapping[str, str]
    numbers: tuple[str, ...] = ()

    @cached_property
    def _keys_by_name(self) -> Mapping[str, str]:
        former = {name: key for key, others in _FORMER.items() for name in others}
        return former | {name: key for key, name in self.names.items()}

    @cached_property
    def _keys_by_synonym(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for key, name in self.names.items():
            for synonym in {part.strip().casefold() for part in name.split(",")} | _FORMER.get(key, frozenset()):
                found[synonym] = (*found.get(synonym, ()), key)
        return found

    def canonical(self, name: str) -> str:
        """Return the key of a class from its key or its name; an unknown name is its own key."""
        return name if name in self.names else self._keys_by_name.get(name, name)

    def find(self, name: str) -> str:
        """Return the key of a class that a user names: by its key, its name, or one of the names in it ("tench").

        Raises:
            ConfigError: several classes have this name.
        """
        key = self.canonical(name)
        if key in self.names:
            return key
        found = self._keys_by_synonym.get(name.casefold(), ())
        if len(found) > 1:
            both = " or ".join(f"{one} ({self.names[one]})" for one in found)
            raise ConfigError(f"ingest.classes: {name!r} is a name of several classes; give {both}")
        return found[0] if found else key

    def is_exact(self, name: str) -> bool:
        """Return whether a name means one key only: none of the other names of a class."""
        return self.canonical(name) in self.names or name.casefold() not in self._keys_by_synonym

    def key_of(self, number: int) -> str | None:
        """Return the key of a label number; None if it lies outside the list."""
        return self.numbers[number] if 0 <= number < len(self.numbers) else None


def load_glossary(class_list: str) -> Glossary:
    """Load WordNet's names of ImageNet's classes, and the label numbers and names of a class list.

    Args:
        class_list: "", the name of a packaged list, or a file with a line `key` or `key<TAB>name` per label number.

    Raises:
        ConfigError: the file cannot be read, or has a class twice.
    """
    wordnet = dict(_packaged("imagenet1k"))
    if not class_list:
        return Glossary(wordnet)
    lines = _packaged(class_list) if class_list in LISTS else _parse_lines(_read_text(class_list))
    keys = [key for key, _ in lines]
    names = wordnet | {key: name for key, name in lines if name or key not in wordnet}
    if duplicate := _first_duplicate(keys):
        raise ConfigError(f"ingest.class_list: {class_list} has {duplicate!r} twice; give every class one line")
    return Glossary({key: name or key for key, name in names.items()}, tuple(keys))


def resolve(available: Iterable[str], wanted: Sequence[str], known: Glossary) -> Classes:
    """Find the wanted classes in an image set.

    Args:
        available: the canonical keys of all classes of the set.
        wanted: keys, names or the name of a packaged list; empty: all classes, sorted by key.

    Raises:
        ConfigError: a wanted class is missing or is given twice, or a class has no name that a prompt can use.
    """
    present = sorted(set(available))
    keys = expand(wanted, known, present) or present
    if missing := [key for key in keys if key not in set(present)]:
        raise ConfigError(_missing_classes(missing, present, known))
    if duplicate := _first_duplicate(keys):
        raise ConfigError(f"ingest.classes: {duplicate!r} is given twice; remove one of them")
    spoken = _without_numbers(present)
    names = [known.names.get(key) or spoken.get(key, key) for key in keys]
    if nameless := [name for name in names if is_wnid(name)]:
        others = f" (and {len(nameless) - 1} more)" if nameless[1:] else ""
        raise ConfigError(
            f"ingest.class_list: {nameless[0]}{others} is not a class of ImageNet-1K, so its name is unknown; "
            "give a file with a line `wnid<TAB>name` for each class"
        )
    if duplicate := _first_duplicate(names):
        raise ConfigError(
            f"ingest.classes: two classes have the name {duplicate!r}; give them different names in ingest.class_list"
        )
    return Classes(tuple(keys), tuple(names))


def _without_numbers(keys: Sequence[str]) -> dict[str, str]:
    """Return names for prompts where the keys are numbered from 0 or 1 on: 001.Black_footed_Albatross."""
    found = {key: match for key in keys if (match := _NUMBERED.fullmatch(key))}
    numbers = sorted(int(match[1]) for match in found.values())
    names = {key: match[2].replace("_", " ") for key, match in found.items()}
    is_count = len(found) == len(keys) and numbers in (list(range(len(keys))), list(range(1, len(keys) + 1)))
    return names if is_count and len(set(names.values())) == len(keys) else {}


def only_numbers(names: Sequence[str]) -> str:
    """Warn of class names that are numbers; "" if there are none."""
    found = [name for name in names if name.strip().isdigit()]
    if not found:
        return ""
    return (
        f'{len(found)} class names are numbers, so that prompts would say "the {found[0]} in the image"; give names in '
        "ingest.class_list"
    )


def expand(wanted: Iterable[str], known: Glossary, present: Container[str] = ()) -> list[str]:
    """Return the keys of classes that are given by key, by name, by one of its names, or as a packaged list.

    Args:
        present: the keys of the set, which come before other meanings of a name.

    Raises:
        ConfigError: a name is that of several classes.
    """
    names = (key for name in wanted for key in ([k for k, _ in _packaged(name)] if name in LISTS else [name]))
    exact = ((name, known.canonical(name)) for name in names)
    return [key if key in present else known.find(name) for name, key in exact]


def _missing_classes(missing: Sequence[str], available: Sequence[str], known: Glossary) -> str:
    names = [known.names.get(key, key) for key in available]
    close = difflib.get_close_matches(missing[0], [*available, *names], n=1)
    fix = (
        f"did you mean {close[0]!r}?"
        if close
        else f"it has {', '.join(available[:5])}{' ...' if available[5:] else ''}"
    )
    return (
        f"ingest.classes: the image set has no {missing[0]!r}"
        f"{f' and {len(missing) - 1} more of the wanted classes' if missing[1:] else ''}; {fix}"
    )


def _first_duplicate(values: Sequence[str]) -> str | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)


def is_wnid(name: str) -> bool:
    """Return whether a name is a number of WordNet: n01440764."""
    return len(name) == _WNID_LENGTH and name[0] == "n" and name[1:].isdigit()


@cache
def _packaged(name: str) -> tuple[tuple[str, str], ...]:
    folder = resources.files(__package__).joinpath("lists")
    file = folder.joinpath(f"{name}.tsv" if name == "imagenet1k" else f"{name}.txt")
    return tuple(_parse_lines(file.read_text(encoding="utf-8")))


def _parse_lines(text: str) -> list[tuple[str, str]]:
    """Split the lines of a class list into (key, name); the name may be empty."""
    rows = [line.rstrip("\r").partition("\t") for line in text.split("\n") if line.strip()]
    return [(key.strip(), name.strip()) for key, _, name in rows]


def _read_text(uri: str) -> str:
    try:
        filesystem, path = open_uri(uri, "ingest.class_list")
        content = retry(lambda: files.read(filesystem, path), f"read ingest.class_list {path}")
        return content.decode("utf-8-sig")
    except AccessError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"ingest.class_list: {uri!r} is none of {', '.join(LISTS)}, and not a file that can be read: {error}"
        ) from error
