"""The layout `digits`: scikit-learn's handwritten digits, embedded in the package."""

from collections.abc import Container, Iterator, Sequence
from typing import Final

import pyarrow as pa

from vlcp_ray.demo import digits
from vlcp_ray.sources.classes import Classes
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.reader import Listing, Part, Row, tables


class Digits:
    """Read the 1,797 images of ten classes, one part per split."""

    layout = "digits"
    description = "the embedded handwritten digits, 10 classes"
    splits = frozenset(("train", "val"))
    classes = Classes(digits.CLASS_NAMES, digits.CLASS_NAMES)

    def parts(self) -> Sequence[Part]:
        return [Part(digits.SOURCE, split) for split in ("train", "val")]

    def images(self, part: Part, skipped: object = None, ids: bool = False) -> Iterator[Listing]:
        for name, label in digits.labels_of(part.split).items():
            yield Listing(part.split, digits.CLASS_NAMES[label], f"{digits.SOURCE} {name}", name)

    def read(self, part: Part, done: Container[str], skipped: object = None) -> Iterator[pa.Table]:
        yield from tables(
            Row(row["image_id"], row["class_name"], row["split"], source, row["image"])
            for row in digits.rows(part.split)
            if (source := f"{row['source']} {row['image_id']}") not in done
        )


LAYOUT: Final = Layout(
    "digits", "the embedded digits", lambda filesystem, path: False, lambda *_: Digits(), embedded=True
)
