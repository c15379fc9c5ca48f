"""Images for the report: read in batches, and encoded smaller the more of them the page has."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.images import decode
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.retrying_filesystem import retrying

#: Longest side in pixels of an image that is kept losslessly and shown enlarged.
SMALL: Final = 64
#: Longest side in pixels of the previews of a page, by the largest number of them: some 3 MB in all.
_SIDES: Final = ((250, 144), (600, 104), (1200, 72))
_SMALLEST_SIDE: Final = 56
THUMBNAIL: Final = 48
_BATCH: Final = 256  # rows in memory at a time where images are read
_THUMBNAILS: Final = pa.schema([("label", pa.int32()), ("class_name", pa.string()), ("image", pa.binary())])


def preview_side(count: int) -> int:
    """Choose the longest side in pixels of each preview, given the number of previews on the page."""
    return next((side for limit, side in _SIDES if count <= limit), _SMALLEST_SIDE)


def preview(data: bytes, side: int) -> dict[str, Any]:
    """Encode an image file for the page.

    Args:
        side: longest side in pixels of the preview of an image that is not small.

    Returns `src`, a data URI, and `small`: whether it is a lossless PNG, else a JPEG of at most `side` pixels.
    """
    kind, content = _encoded(data, side)
    return {"src": f"data:image/{kind};base64,{base64.b64encode(content).decode()}", "small": kind == "png"}


def thumbnail(data: bytes, side: int = THUMBNAIL) -> bytes:
    """Encode an image file as a JPEG of at most `side` pixels."""
    return _jpeg(decode(data), side)


@lru_cache(maxsize=4096)
def _encoded(data: bytes, side: int) -> tuple[str, bytes]:
    image = decode(data)
    if max(image.size) > SMALL:
        return "jpeg", _jpeg(image, side)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "png", buffer.getvalue()


def _jpeg(image: Any, side: int) -> bytes:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=78, optimize=True)
    return buffer.getvalue()


def count_bytes(artifact: Artifact, folder: str, split: str) -> int:
    """Add up the bytes of all image files of a split.

    Args:
        folder: of a table with the columns image and split.
    """
    batches = _batches(artifact, folder, ["image"], pc.field("split") == split)
    return sum(int(pc.sum(pc.binary_length(batch["image"])).as_py() or 0) for batch in batches)


def thumbnails(artifact: Artifact, ids: Sequence[str]) -> pa.Table:
    """Read label, class_name and image, reduced to a small JPEG, of the SYNTHETIC rows with these prototype_ids."""
    wanted = pc.field("prototype_id").isin(pa.array(ids, pa.string()))
    parts = [_THUMBNAILS.empty_table()]
    for batch in _batches(artifact, "synthetic", SYNTHETIC.names, wanted):
        small = pa.array([thumbnail(image) for image in batch["image"].to_pylist()], pa.binary())
        parts.append(pa.table([batch["label"], batch["class_name"], small], schema=_THUMBNAILS))
    return pa.concat_tables(parts)


def _batches(artifact: Artifact, folder: str, columns: Sequence[str], wanted: Any) -> Iterator[pa.RecordBatch]:
    store = replace(artifact, filesystem=retrying(artifact.filesystem))
    data = store.open_parts(artifact.parts(folder), columns)
    with artifact.naming_damage(f"{artifact.path}/{folder}"):
        # Without read-ahead at most one batch of images is in memory.
        yield from data.to_batches(columns=list(columns), filter=wanted, batch_size=_BATCH, batch_readahead=1)
