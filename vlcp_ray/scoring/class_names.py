"""Find the classes of a set among those of a job, by key or by name and never by position."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import LISTS, Glossary, load_glossary
from vlcp_ray.sources.reader import list_some

#: The value of `--classes` that says that class numbers are those of the job.
OF_JOB: Final = "job"


@dataclass(frozen=True)
class JobClasses:
    """The classes of a job in the order of their labels: keys, as wnids, and names."""

    keys: tuple[str, ...]
    names: tuple[str, ...]

    def match(self, found: Sequence[str], place: str) -> list[int]:
        """Return the label of each class of a set, by its key, its name or one of the names in it.

        Case, blanks and punctuation are ignored where a name does not fit as it is.

        Raises:
            ConfigError: the job has no such class, two are the same class, or one of the job is missing.
        """
        labels = [self._find(name) for name in found]
        unknown = [name for name, label in zip(found, labels, strict=True) if label is None]
        if unknown:
            close = difflib.get_close_matches(unknown[0], [*self.names, *self.keys], n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"it has {list_some(self.names)}"
            more = f" (and {len(unknown) - 1} more)" if unknown[1:] else ""
            numbers = self._numbers_fix if all(name.isdigit() for name in unknown) else ""
            raise ConfigError(f"{place}: the job has no class {unknown[0]!r}{more}; {numbers or fix}")
        known = [label for label in labels if label is not None]
        for place_of, label in enumerate(known):
            if (first := known.index(label)) != place_of:
                raise ConfigError(
                    f"{place}: {found[first]!r} and {found[place_of]!r} are both the class {self.names[label]!r}; "
                    "rename or remove one"
                )
        return known

    def check_complete(self, counts: Sequence[int], place: str) -> None:
        """Refuse a set without images of a class.

        Args:
            counts: images of each label.

        Raises:
            ConfigError: names the first class without one.
        """
        missing = [name for name, count in zip(self.names, counts, strict=True) if not count]
        if missing:
            more = f" and {len(missing) - 1} more of the job's {len(self.names)} classes" if missing[1:] else ""
            raise ConfigError(
                f"{place}: it has no image of {missing[0]!r}{more}; score it with a job of its classes "
                "(--set ingest.classes=...)"
            )

    def of_numbers(self, class_list: str, place: str) -> list[int]:
        """Return the label of each class number, by a list of classes.

        Args:
            class_list: the name of a packaged list, or a file with a line `key` or `key<TAB>name` for each number;
                `job`: the numbers are the job's own labels; empty: there is none.

        Raises:
            ConfigError: there is no list, it cannot be read, or its classes are not those of the job.
        """
        if not class_list:
            raise ConfigError(
                f"{place}: its classes are numbers, and nothing says which class a number is; {self._numbers_fix}"
            )
        if class_list == OF_JOB:
            return list(range(len(self.names)))
        try:
            glossary = load_glossary(class_list)
        except ConfigError as error:
            raise ConfigError(str(error).replace("ingest.class_list", "--classes")) from error
        listed = [key if key in self.keys else glossary.names[key] for key in glossary.numbers]
        return self.match(listed, f"--classes {class_list}")

    def _find(self, name: str) -> int | None:
        for names in (self.keys, self.names):
            if name in names:
                return names.index(name)
        try:
            key = self._wordnet.find(name)
        except ConfigError:  # a name of several classes of ImageNet, of which the job may have one
            key = name
        if key in self.keys:
            return self.keys.index(key)
        found = [label for label, own in enumerate(self.names) if _letters(own) == _letters(name)]
        return found[0] if len(found) == 1 and _letters(name) else None

    @cached_property
    def _wordnet(self) -> Glossary:
        return load_glossary("")

    @property
    def _numbers_fix(self) -> str:
        numbered = list_some(f"{number} {name}" for number, name in enumerate(self.names))
        return (
            f"give --classes with a list of the package ({', '.join(LISTS)}) or a file with a line for each number, or "
            f"--classes {OF_JOB} where the numbers are the job's labels ({numbered})"
        )


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())
