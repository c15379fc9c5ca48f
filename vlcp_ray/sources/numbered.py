"""What the layouts of arrays share: their images have numbers, and are listed and read by parts of them."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence

import pyarrow as pa

from vlcp_ray.sources.reader import Listing, Part, Row, tables


class NumberedImages(ABC):
    """List and read the images of parts, each of which is a range of numbers in an array."""

    #: The keys of all classes, and of the wanted ones; images of no class are listed, too.
    keys: frozenset[str]
    wanted: frozenset[str]

    @abstractmethod
    def _key(self, part: Part, number: int) -> str:
        """Return the class key of an image: `#` and the label number where no class has it."""

    @abstractmethod
    def _id(self, part: Part, number: int) -> str:
        """Return the id of an image."""

    @abstractmethod
    def _rows(self, part: Part, numbers: Sequence[int]) -> Iterator[Row]:
        """Read images of a part, in their order."""

    def images(self, part: Part, skipped: object = None, ids: bool = False) -> Iterator[Listing]:
        for number in self._numbers(part, ()):
            yield Listing(part.split, self._key(part, number), self._source(part, number), self._id(part, number))

    def read(self, part: Part, done: Container[str], skipped: object = None) -> Iterator[pa.Table]:
        yield from tables(self._rows(part, self._numbers(part, done)))

    def _numbers(self, part: Part, done: Container[str]) -> list[int]:
        """List the images of a part that are wanted, or of no class, and are not done."""
        keys = ((number, self._key(part, number)) for number in range(part.start, part.end))
        numbers = (number for number, key in keys if key in self.wanted or key not in self.keys)
        return [number for number in numbers if self._source(part, number) not in done]

    def _source(self, part: Part, number: int) -> str:
        return f"{part.path}#{number}"
