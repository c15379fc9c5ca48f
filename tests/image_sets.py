"""Write small image sets of real files in every layout, and read them."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from vlcp_ray.sources import open_source
from vlcp_ray.sources.reader import RAW, Source
from vlcp_ray.stages.ingest import Ingest

SHARED = Path(__file__).parents[2] / "shared" / "data"


def noise(seed: int, size: tuple[int, int] = (16, 12)) -> Image.Image:
    """Make a random RGB image of (width, height) pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def picture(
    seed: int, kind: str = "JPEG", size: tuple[int, int] = (16, 12), mode: str = "RGB", **options: Any
) -> bytes:
    """Make the bytes of a small random image file."""
    return encoded(noise(seed, size).convert(mode), kind, **options)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an image to the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files, given by relative path, and return their root."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_parquet(
    file: Path, rows: Iterable[tuple[bytes, str | None, Any]], names: Iterable[str] | None, row_group_size: int = 3
) -> Path:
    """Write rows of (bytes, path, label) as the hub does, with label names in the schema's metadata, or none."""
    rows = list(rows)
    images = pa.array(
        [{"bytes": b, "path": p} for b, p, _ in rows], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    table = pa.table({"image": images, "label": pa.array([label for *_, label in rows])})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=row_group_size)
    return file


def write_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar of (name, bytes), and return its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def open_set(source: Path | str, **settings: Any) -> Source:
    """Open an image set, without the cache: a test may have changed its files."""
    open_source.cache_clear()
    return open_source(Ingest(source=str(source), **settings))


def read_all(source: Source, done: Iterable[str] = ()) -> pa.Table:
    """Read all rows that are not done, sorted by their source."""
    tables = [table for part in source.parts() for table in source.read(part, frozenset(done))]
    return pa.concat_tables([RAW.empty_table(), *tables]).sort_by("source")


def by_source(table: pa.Table, column: str) -> dict[str, Any]:
    """Return the values of a column by the source of their row."""
    return dict(zip(table["source"].to_pylist(), table[column].to_pylist(), strict=True))
