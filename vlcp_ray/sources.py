"""Knows the layouts in which people keep labelled image sets, and reads them shard by shard."""

from collections.abc import Sequence
from typing import Final, Protocol

import pyarrow as pa

from vlcp_ray.config import ConfigError
from vlcp_ray.demo import digits

#: What a source hands to `ingest`, before anything is checked: the columns of IMAGES without the label's number.
RAW: Final = pa.schema([(name, pa.string()) for name in ("image_id", "class_name", "split", "source")]).append(
    pa.field("image", pa.binary())
)


class Source(Protocol):
    """A labelled image set that can be read in independent shards."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their labels."""

    @property
    def identity(self) -> str:
        """What a fingerprint holds of the set."""

    def shards(self) -> Sequence[str]:
        """The names of the parts that can be read on their own."""

    def count(self, shards: Sequence[str]) -> int:
        """How many rows these parts hold."""

    def read(self, shard: str) -> pa.Table:
        """The rows of one part, with the columns of RAW."""


class Digits:
    """scikit-learn's handwritten digits, embedded: a shard is a split."""

    class_names = digits.CLASS_NAMES
    identity = "digits"

    def shards(self) -> Sequence[str]:
        return ("train", "val")

    def count(self, shards: Sequence[str]) -> int:
        return sum({"train": digits.TRAIN_IMAGES, "val": digits.VAL_IMAGES}[shard] for shard in shards)

    def read(self, shard: str) -> pa.Table:
        return pa.Table.from_pylist([dict(row) for row in digits.rows(shard)]).select(RAW.names).cast(RAW)


def open_source(name: str) -> Source:
    """The image set of a name.

    Raises:
        ConfigError: the name is not known.
    """
    if name == "digits":
        return Digits()
    raise ConfigError(f"ingest.source: {name!r} is not known; the image set that can be read is 'digits'")
