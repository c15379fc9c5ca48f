"""Choose the first images of every class by a hash of their ids: no worker and no order of files changes them."""

import heapq
from collections.abc import Container
from dataclasses import dataclass, field

from vlcp_ray.seeds import seed_for
from vlcp_ray.sources.reader import Part, Source
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.ingest.label import split_of_id

#: The place of an image in the order of its class, its source, and the number of its part.
Place = tuple[int, str, int]


@dataclass
class Sample:
    """The first images of every class of some parts.

    Args:
        places: those of a split and a class.
        damaged: why parts could not be listed to their end.
    """

    places: dict[tuple[str, str], list[Place]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    def add(self, other: "Sample", settings: Ingest) -> None:
        """Add the images of other parts, and keep the first of each class."""
        for (split, key), places in other.places.items():
            first = heapq.nsmallest(limit(settings, split), [*self.places.get((split, key), ()), *places])
            self.places[split, key] = first
        self.damaged += other.damaged

    def sources(self) -> dict[int, frozenset[str]]:
        """Return the sources of the images of each part that has some, by the number of the part."""
        found: dict[int, set[str]] = {}
        for places in self.places.values():
            for _, source, part in places:
                found.setdefault(part, set()).add(source)
        return {part: frozenset(sources) for part, sources in sorted(found.items())}


def limit(settings: Ingest, split: str) -> int:
    """Return the largest number of images of a class in a split; 2^63 without a limit."""
    return (settings.max_val_per_class if split == "val" else settings.max_per_class) or 2**63


def is_sample(settings: Ingest) -> bool:
    """Return whether only some images of a class are read."""
    return bool(settings.max_per_class or settings.max_val_per_class)


def sample_part(source: Source, settings: Ingest, number: int, part: Part) -> Sample:
    """List a part, and keep the first images of each class; those without a label are left out.

    Args:
        number: of the part.
    """
    wanted, sample = frozenset(source.classes.keys), Sample()
    pending: dict[tuple[str, str], list[Place]] = {}
    try:
        for image in source.images(part, ids=True):
            if image.class_key not in wanted or (settings.val_fraction and image.split == "val"):
                continue
            split = split_of_id(image.image_id, settings.val_fraction) if settings.val_fraction else image.split
            places = pending.setdefault((split, image.class_key), [])
            places.append((seed_for(0, "sample", image.image_id), image.source, number))
            if len(places) > 2 * limit(settings, split):
                places[:] = heapq.nsmallest(limit(settings, split), places)
    except ValueError as error:
        sample.damaged.append(str(error))
    sample.add(Sample(pending), settings)
    return sample


class OthersDone:
    """The sources of a part that are not read: those that are done, and those that are not chosen."""

    def __init__(self, chosen: frozenset[str], done: Container[str]) -> None:
        self.chosen, self.done = chosen, done

    def __contains__(self, source: object) -> bool:
        return source not in self.chosen or source in self.done
