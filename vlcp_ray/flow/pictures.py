"""Knows how the report gets at bytes, pixels and latents of large tables: streamed by workers, what is shown alone."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from vlcp_ray.flow.storage import patient
from vlcp_ray.flow.tasks import in_flight, task
from vlcp_ray.page.contents import Plane
from vlcp_ray.page.pictures import thumbnail
from vlcp_ray.scale import Pool
from vlcp_ray.schemas import MEMBERS, SYNTHETIC, pairs_schema, prototypes_schema, tensors
from vlcp_ray.stages.embed import embed
from vlcp_ray.store import Artifact

#: Rows in memory at a time where images are read, and images of a class that are laid on a plane.
_BATCH, MAX_POINTS = 256, 240
_THUMBNAILS: Final = pa.schema([("label", pa.int32()), ("class_name", pa.string()), ("image", pa.binary())])


def image_bytes(artifact: Artifact, folder: str, split: str) -> int:
    """The bytes of all image files of a split, counted by a worker."""
    return int(ray.get(ray.remote(_image_bytes).remote(artifact, folder, split)))


def thumbnails(artifact: Artifact, ids: Sequence[str]) -> pa.Table:
    """label, class_name and a small JPEG of the SYNTHETIC rows with these prototype_ids, made by a worker."""
    made: pa.Table = ray.get(ray.remote(_thumbnails).remote(artifact, list(ids)))
    return made


def planes(
    pairs: Artifact, prototypes: Artifact, labels: Sequence[int], n_init: int, seed: int, pool: Pool
) -> list[Plane]:
    """The latents of some classes on a plane each, by as many workers as the pool has; the latents are read once."""
    latents = ray.remote(_latents).remote(pairs, list(labels))
    call = task(_plane, pool)
    work = (partial(call.remote, latents, prototypes, label, n_init, seed) for label in labels)
    found = dict(in_flight(work, pool.num_workers))
    return [found[label] for label in labels]


def _batches(artifact: Artifact, folder: str, columns: Sequence[str], wanted: Any) -> Any:
    from pyarrow import dataset as pads

    files = artifact.files(folder)
    data = pads.dataset(files, filesystem=patient(artifact.filesystem), format="parquet")
    # Without read-ahead no more than a batch of images is in memory.
    return data.to_batches(columns=list(columns), filter=wanted, batch_size=_BATCH, batch_readahead=1)


def _image_bytes(artifact: Artifact, folder: str, split: str) -> int:
    batches = _batches(artifact, folder, ["image"], pc.field("split") == split)
    return sum(int(pc.sum(pc.binary_length(batch["image"])).as_py() or 0) for batch in batches)


def _thumbnails(artifact: Artifact, ids: Sequence[str]) -> pa.Table:
    wanted = pc.field("prototype_id").isin(pa.array(ids, pa.string()))
    made = [_THUMBNAILS.empty_table()]
    for batch in _batches(artifact, "synthetic", SYNTHETIC.names, wanted):
        small = pa.array([thumbnail(image) for image in batch["image"].to_pylist()], pa.binary())
        made.append(pa.table([batch["label"], batch["class_name"], small], schema=_THUMBNAILS))
    return pa.concat_tables(made)


def _latents(pairs: Artifact, labels: Sequence[int]) -> pa.Table:
    schema = pairs_schema((1, 1, 1), (1, 1, 1))
    return pairs.rows("pairs", schema, ["image_id", "label", "latent"], "label", pa.array(labels, pa.int32()))


def _plane(latents: pa.Table, prototypes: Artifact, label: int, n_init: int, seed: int) -> tuple[int, Plane]:
    only = pa.array([label], pa.int32())
    rows = latents.filter(pc.equal(latents["label"], label)).sort_by("image_id")
    members = prototypes.rows("members", MEMBERS, ["image_id", "cluster"], "label", only).sort_by("image_id")
    columns = ["label", "class_name", "cluster", "latent"]
    centres = prototypes.rows("prototypes", prototypes_schema((1, 1, 1)), columns, "label", only).sort_by("cluster")
    clusters = members["cluster"].to_numpy()
    values = tensors(rows["latent"]).reshape(len(rows), -1).astype(np.float32)
    middles = tensors(centres["latent"]).reshape(len(centres), -1)
    shown, laid = embed(values, clusters, middles, n_init, seed, MAX_POINTS)
    name = centres["class_name"][0].as_py()
    return label, Plane(name, laid.points, clusters[shown], laid.centres, laid.centres_before, len(rows))
