"""Tests of listing and reading images that have numbers: those that are wanted, or of no class, and are not done."""

from collections.abc import Iterator, Sequence

from vlcp_ray.sources.numbered import NumberedImages
from vlcp_ray.sources.reader import Listing, Part, Row

PART = Part("x.npz:train", "train", start=2, end=8)


class Letters(NumberedImages):
    """Images whose class is the letter at their number."""

    keys, wanted = frozenset("ab"), frozenset("a")

    def _key(self, part: Part, number: int) -> str:
        return "ababab#b"[number]

    def _id(self, part: Part, number: int) -> str:
        return f"{part.split}/{number}"

    def _rows(self, part: Part, numbers: Sequence[int]) -> Iterator[Row]:
        for number in numbers:
            yield Row(self._id(part, number), self._key(part, number), part.split, self._source(part, number), b"x")


def test_numbered_images_of_a_part_are_the_wanted_ones_and_those_of_no_class() -> None:
    assert list(Letters().images(PART)) == [
        Listing("train", "a", "x.npz:train#2", "train/2"),
        Listing("train", "a", "x.npz:train#4", "train/4"),
        Listing("train", "#", "x.npz:train#6", "train/6"),
    ]


def test_numbered_images_that_are_done_are_not_read() -> None:
    (table,) = Letters().read(PART, {"x.npz:train#4"})
    assert table["image_id"].to_pylist() == ["train/2", "train/6"]
    assert list(Letters().read(PART, {f"x.npz:train#{number}" for number in range(8)})) == []
