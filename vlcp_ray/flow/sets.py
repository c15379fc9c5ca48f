"""Knows where the report finds what it shows of a distilled set, and reads no more of the set than that."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.flow.context import Context
from vlcp_ray.flow.pictures import image_bytes
from vlcp_ray.page.contents import DistilledSet
from vlcp_ray.page.sets import MAX_NEAREST, MAX_OUTLIERS, Budget
from vlcp_ray.schemas import IMAGES, MEMBERS, SYNTHETIC, prototypes_schema, with_column
from vlcp_ray.store import Artifact, Step

By: TypeAlias = Mapping[str, Sequence[Step]]
_SCHEMA: Final = prototypes_schema((1, 1, 1))
_PROTOTYPE: Final = [name for name in _SCHEMA.names if name != "latent"]


def distilled(context: Context, step: Step, by_stage: By, budget: Budget, *, detailed: bool) -> DistilledSet:
    """What is shown of the set that a step has drawn; `detailed` with the pictures beside its prototypes."""
    prototypes = context.input(step, "prototypes")
    rows = prototypes.table("prototypes", _SCHEMA, ["prototype_id", "label"])
    shown = shown_prototypes(prototypes, budget)
    labels, members = members_of(context, step, budget)
    images = context.artifact(step.inputs["prototypes"].inputs["pairs"].inputs["images"])
    key = {**step.key, "method": "centroid"}
    decoded = [_part(context.artifact(s), shown) for s in by_stage.get("select", ()) if s.key == key and detailed]
    apart = members.filter(pc.less(members["cluster"], 0))
    seen = members if detailed else members.slice(0, 0)
    return DistilledSet(
        seed=step.key["seed"],
        ipc=step.key["ipc"],
        prototypes=shown,
        synthetic=_part(context.artifact(step), shown),
        centroids=decoded[0] if decoded else None,
        nearest=_nearest(seen, shown, images),
        outliers=_with_images(_outliers(seen), images),
        outlier_counts={
            label: int(pc.sum(pc.equal(apart["label"], label)).as_py() or 0) for label in labels.to_pylist()
        },
        classes=len(pc.unique(rows["label"])),
        images=len(rows),
        n_bytes=image_bytes(context.artifact(step), "synthetic", "train"),
    )


def shown_prototypes(prototypes: Artifact, budget: Budget) -> pa.Table:
    """The PROTOTYPES rows, without latents, whose pictures the page has."""
    sizes = prototypes.table("prototypes", _SCHEMA, ["prototype_id", "label", "cluster", "size"])
    ids = budget.shown(sizes)["prototype_id"]
    return prototypes.rows("prototypes", _SCHEMA, _PROTOTYPE, "prototype_id", ids)


def members_of(context: Context, step: Step, budget: Budget) -> tuple[pa.Array, pa.Table]:
    """The labels that are shown in full and their MEMBERS."""
    prototypes = context.input(step, "prototypes")
    known = prototypes.table("prototypes", _SCHEMA, ["label"])["label"].to_pylist()
    labels = pa.array(budget.shown_labels(known), pa.int32())
    return labels, prototypes.rows("members", MEMBERS, MEMBERS.names, "label", labels)


def _part(artifact: Artifact, shown: pa.Table) -> pa.Table:
    return artifact.rows("synthetic", SYNTHETIC, SYNTHETIC.names, "prototype_id", shown["prototype_id"])


def _nearest(members: pa.Table, shown: pa.Table, images: Artifact) -> pa.Table:
    """The real members nearest to each shown centroid, with their bytes."""
    names = [f"{row['label']:04d}-{row['cluster']:04d}" for row in members.select(["label", "cluster"]).to_pylist()]
    members = with_column(members, "prototype_id", pa.array(names, pa.string()))
    members = members.filter(pc.is_in(members["prototype_id"], value_set=shown["prototype_id"]))
    chosen = _first(members, ["prototype_id"], "ascending", MAX_NEAREST)
    return _with_images(chosen, images).select(["prototype_id", "image_id", "image", "distance"])


def _outliers(members: pa.Table) -> pa.Table:
    return _first(members.filter(pc.less(members["cluster"], 0)), ["label"], "descending", MAX_OUTLIERS)


def _first(members: pa.Table, group: list[str], order: str, count: int) -> pa.Table:
    """Of each group the rows with the least or the greatest distance."""
    keys = [*((name, "ascending") for name in group), ("distance", order), ("image_id", "ascending")]
    members = members.sort_by(keys)
    place = members.select(group).to_pandas().groupby(group).cumcount().to_numpy()
    return members.take(np.flatnonzero(place < count))


def _with_images(members: pa.Table, images: Artifact) -> pa.Table:
    pixels = images.rows("images", IMAGES, ["image_id", "image"], "image_id", members["image_id"])
    return members.join(pixels, "image_id")
