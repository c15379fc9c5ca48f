"""Knows what row-wise plans are fed with: rows that were chosen, descriptions that exist already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from vlcp_ray.filesystems import open_uri
from vlcp_ray.flow.data import TARGET
from vlcp_ray.methods.real import as_synthetic
from vlcp_ray.schemas import with_column
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.caption import CarryCaptions


class CarryFrom:
    """The stage that takes descriptions from a table: its actor reads it, parquet or JSON lines, at any URI."""

    def __init__(self, uri: str) -> None:
        table = captions_at(uri)
        # PAIRS of an earlier run are such a table: its latents stay where they are.
        columns = [name for name in ("image_id", "caption", "file_name", "text") if name in table.schema.names]
        self.carry = CarryCaptions(table.to_table(columns=columns))

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.carry(table)


def captions_at(uri: str) -> pads.Dataset:
    """The table of descriptions at a URI; of its files the first is looked at.

    Raises:
        ConfigError: it is not there, or is neither parquet nor JSON lines.
    """
    kind = "json" if uri.endswith((".jsonl", ".json")) else "parquet"
    try:
        filesystem, path = open_uri(uri, "caption.source")
        return pads.dataset(path, filesystem=filesystem, format=kind)
    except (OSError, ValueError) as error:
        what = "JSON lines" if kind == "json" else "parquet (JSON lines end in .jsonl)"
        raise ConfigError(f"caption.source: {uri} cannot be read as {what}: {str(error).splitlines()[0]}") from error


@dataclass
class Chosen:
    """Keeps the rows that were chosen for any target, once for each."""

    chosen: Mapping[str, Sequence[str]]

    def __call__(self, block: pa.Table) -> pa.Table:
        parts = []
        for target, image_ids in self.chosen.items():
            part = block.filter(pc.is_in(block["image_id"], value_set=pa.array(image_ids, pa.string())))
            parts.append(with_column(as_synthetic(part), TARGET, pa.array([target] * len(part), pa.string())))
        return pa.concat_tables(parts)


@dataclass(frozen=True)
class Route:
    """Where the rows of one artifact go: to which target, with which seed, and which ids are there already."""

    target: str
    seed: int
    done: pa.Array


@dataclass
class Routed:
    """Sends the rows of several artifacts, known by the `path` of their file, to the sets that they are drawn for."""

    routes: Mapping[str, Route]

    def __call__(self, block: pa.Table) -> pa.Table:
        origins = pa.array([path.rsplit("/", 2)[0] for path in block["path"].to_pylist()], pa.string())
        parts = []
        for origin, route in self.routes.items():
            part = block.filter(pc.equal(origins, origin))
            part = part.filter(pc.invert(pc.is_in(part["prototype_id"], value_set=route.done)))
            part = with_column(part, TARGET, pa.array([route.target] * len(part), pa.string()))
            parts.append(with_column(part, "seed", pa.array([route.seed] * len(part), pa.int64())))
        return pa.concat_tables(parts)
