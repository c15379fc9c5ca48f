"""Keep one row of every image_id in IMAGES and move the others to REJECTED."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.schemas import REJECTED, conform, with_column
from vlcp_ray.stages.ingest import STAGE
from vlcp_ray.store.artifact import Artifact, part_name
from vlcp_ray.store.retrying_filesystem import retrying


def reject_duplicates(artifact: Artifact) -> None:
    """Move all rows but one of every image_id from IMAGES to REJECTED; the row with the first `source` is kept.

    The result does not depend on the order of the rows. Safe to interrupt and run again: a row is written to REJECTED
    before it is removed from IMAGES.
    """
    parts = {part.path: part for part in artifact.parts("images")}
    if not parts:
        return
    store = replace(artifact, filesystem=retrying(artifact.filesystem))
    columns = ["image_id", "source"]
    data = store.open_parts(list(parts.values()), columns)
    with artifact.naming_damage(f"{artifact.path}/images"):
        index = data.to_table(columns=[*columns, "__filename"])
    counts = pc.value_counts(index["image_id"])
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(repeated):
        return
    rows = index.filter(pc.is_in(index["image_id"], value_set=repeated))
    rows = rows.sort_by([(name, "ascending") for name in index.column_names])
    kept: dict[str, str] = {}  # image_id -> source
    duplicates: dict[str, dict[str, str]] = {}  # file -> source -> source of the row that is kept
    for row in rows.to_pylist():
        if row["image_id"] in kept:
            duplicates.setdefault(row["__filename"], {})[row["source"]] = kept[row["image_id"]]
        else:
            kept[row["image_id"]] = row["source"]
    written = {
        f"{artifact.path}/{_rewrite(artifact, artifact.read_parts([parts[path]]), sources)}"
        for path, sources in duplicates.items()
    }
    artifact.delete_files([parts[path] for path in set(duplicates) - written])


def _rewrite(artifact: Artifact, table: pa.Table, duplicates: dict[str, str]) -> str:
    """Write the rows of a file of IMAGES again: duplicates to REJECTED, the others to a new file of IMAGES.

    Args:
        duplicates: the source of each duplicate, and the source of the row that is kept in its place.

    Returns the name of the new file.
    """
    is_duplicate = pc.is_in(table["source"], value_set=pa.array(list(duplicates), pa.string()))
    bad = table.filter(is_duplicate)
    # An interrupted call leaves some rows in two files of IMAGES: their source is the kept one, so not rejected.
    bad = bad.filter(pa.array([duplicates[source] != source for source in bad["source"].to_pylist()], pa.bool_()))
    if len(bad):
        details = [f"{row['image_id']} is also the id of {duplicates[row['source']]}" for row in bad.to_pylist()]
        for name, values in (
            ("stage", [STAGE.name] * len(bad)),
            ("reason", ["duplicate"] * len(bad)),
            ("detail", details),
        ):
            bad = with_column(bad, name, pa.array(values, pa.string()))
        artifact.write_table(f"rejected/{part_name(bad['source'].to_pylist())}", conform(bad, REJECTED))
    good = table.filter(pc.invert(is_duplicate))
    name = f"images/{part_name(good['source'].to_pylist())}"
    if len(good):
        artifact.write_table(name, good)
    return name
