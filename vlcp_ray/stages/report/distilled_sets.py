"""Read the part of a distilled set that the report shows."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.schemas import IMAGES, SYNTHETIC
from vlcp_ray.stages.prototype import MEMBERS, PROTOTYPES
from vlcp_ray.stages.report.contents import DistilledSet
from vlcp_ray.stages.report.sets_section import MAX_NEAREST, MAX_OUTLIERS, Budget
from vlcp_ray.store.artifact import Artifact

_COLUMNS: Final = [name for name in PROTOTYPES.names if name != "latent"]


def read_set(
    key: Mapping[str, Any],
    synthetic: Artifact,
    prototypes: Artifact,
    images: Artifact,
    centroids: Artifact | None,
    budget: Budget,
    n_bytes: int,
    *,
    detailed: bool,
) -> DistilledSet:
    """Read what is shown of a distilled set, and the totals of the whole set.

    Args:
        key: its seed and ipc.
        synthetic: the artifact with SYNTHETIC.
        prototypes: the artifact with PROTOTYPES and MEMBERS.
        images: the artifact with IMAGES, for the real images beside the prototypes.
        centroids: the same set decoded without denoising, if the job has it.
        budget: limits on what is shown.
        n_bytes: bytes of all its image files.
        detailed: also read the real images nearest to the prototypes, the outliers and the decoded centroids.
    """
    sizes = read_sizes(prototypes)
    shown = shown_prototypes(prototypes, budget, sizes)
    labels, members = read_members(prototypes, budget, sizes)
    outlier_labels = members.filter(pc.less(members["cluster"], 0))["label"]
    detailed_members = members if detailed else members.slice(0, 0)
    return DistilledSet(
        seed=key["seed"],
        ipc=key["ipc"],
        prototypes=shown,
        synthetic=_rows_of(synthetic, shown),
        centroids=_rows_of(centroids, shown) if centroids and detailed else None,
        nearest=_nearest(detailed_members, shown, images),
        outliers=_with_images(_farthest_outliers(detailed_members), images),
        outlier_counts={
            label: int(pc.sum(pc.equal(outlier_labels, label)).as_py() or 0) for label in labels.to_pylist()
        },
        classes=len(pc.unique(sizes["label"])),
        images=len(sizes),
        n_bytes=n_bytes,
    )


def read_sizes(prototypes: Artifact) -> pa.Table:
    """Read what decides which rows the page shows: prototype_id, label, cluster and size of all PROTOTYPES."""
    return prototypes.table("prototypes", PROTOTYPES, ["prototype_id", "label", "cluster", "size"])


def shown_prototypes(prototypes: Artifact, budget: Budget, sizes: pa.Table) -> pa.Table:
    """Read the PROTOTYPES rows, without latents, whose images the page shows.

    Args:
        sizes: of `read_sizes`.
    """
    ids = budget.shown_prototypes(sizes)["prototype_id"]
    return prototypes.rows("prototypes", PROTOTYPES, _COLUMNS, "prototype_id", ids)


def read_members(prototypes: Artifact, budget: Budget, sizes: pa.Table) -> tuple[pa.Array, pa.Table]:
    """Return the labels of the classes that are shown in full, and read their MEMBERS.

    Args:
        sizes: of `read_sizes`.
    """
    labels = pa.array(budget.shown_labels(sizes["label"].to_pylist()), pa.int32())
    return labels, prototypes.rows("members", MEMBERS, MEMBERS.names, "label", labels)


def _rows_of(synthetic: Artifact, prototypes: pa.Table) -> pa.Table:
    return synthetic.rows("synthetic", SYNTHETIC, SYNTHETIC.names, "prototype_id", prototypes["prototype_id"])


def _nearest(members: pa.Table, shown: pa.Table, images: Artifact) -> pa.Table:
    """Return the real members nearest to the centroid of each shown prototype, with their image files."""
    members = members.join(shown.select(["prototype_id", "label", "cluster"]), ["label", "cluster"], join_type="inner")
    nearest = _first_by_distance(members, "prototype_id", "ascending", MAX_NEAREST)
    return _with_images(nearest, images).select(["prototype_id", "image_id", "image", "distance"])


def _farthest_outliers(members: pa.Table) -> pa.Table:
    outliers = members.filter(pc.less(members["cluster"], 0))
    return _first_by_distance(outliers, "label", "descending", MAX_OUTLIERS)


def _first_by_distance(members: pa.Table, group: str, order: str, count: int) -> pa.Table:
    """Return the first rows of each group in the order of their distance; equal distances in the order of image_id."""
    members = members.sort_by([(group, "ascending"), ("distance", order), ("image_id", "ascending")])
    rank = members.select([group]).to_pandas().groupby(group).cumcount().to_numpy()
    return members.take(np.flatnonzero(rank < count))


def _with_images(members: pa.Table, images: Artifact) -> pa.Table:
    files = images.rows("images", IMAGES, ["image_id", "image"], "image_id", members["image_id"])
    return members.join(files, "image_id")
