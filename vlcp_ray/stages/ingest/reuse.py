"""Copy images that were checked before: another `ingest.val_fraction` changes the splits of images, not the images."""

import json
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.schemas import IMAGES, conform, with_column
from vlcp_ray.stages.ingest import STAGE, Ingest
from vlcp_ray.stages.ingest.label import split_of_id
from vlcp_ray.stages.ingest.sample import is_sample
from vlcp_ray.store import files
from vlcp_ray.store.artifact import Artifact, Step, Store, part_name
from vlcp_ray.store.files import File
from vlcp_ray.store.io import StoreError, retry

_SPLIT: Final = "val_fraction"


def find_reusable(store: Store, step: Step, settings: Ingest) -> list[tuple[Artifact, float]]:
    """Find complete artifacts of the same image set that differ in `ingest.val_fraction` only, sorted by their path.

    A sample has none: which images are chosen depends on their splits.

    Returns them with their val_fraction.
    """
    if is_sample(settings):
        return []
    found = []
    for name in sorted(retry(lambda: files.list_folders(store.filesystem, store.path), f"list {store.path}")):
        if not name.startswith(f"{STAGE.name}-") or name == f"{STAGE.name}-{step.fingerprint}":
            continue
        artifact = Artifact(store.filesystem, f"{store.path}/{name}")
        try:
            manifest = artifact.manifest()
        except StoreError:  # of another set, or damaged: then the images are read
            continue
        if manifest and manifest.get("version") == step.version and _same(manifest.get("settings"), step):
            found.append((artifact, float(manifest["settings"][_SPLIT])))
    return found


def _same(settings: Any, step: Step) -> bool:
    """Return whether a manifest's settings are those of a step but for the share of val."""
    mine = json.loads(json.dumps(step.settings))  # as a manifest has them: lists in place of tuples
    if not isinstance(settings, dict) or settings.keys() != mine.keys():
        return False
    return all(settings[name] == mine[name] for name in mine if name != _SPLIT)


def copy_part(source: Artifact, part: File, had: float, to: Artifact, wanted: float) -> int:
    """Copy the rows of a file of IMAGES that are train in the image set, with their new splits.

    Copying again writes the same file again.

    Args:
        had: `val_fraction` of the artifact that is copied.
        wanted: that of the artifact which is made.

    Returns the number of rows.
    """
    rows = source.read_parts([part])
    if not had:  # its val images are those of the set
        rows = rows.filter(pc.equal(rows["split"], "train"))
    if len(rows):
        splits = [split_of_id(image_id, wanted) for image_id in rows["image_id"].to_pylist()]
        rows = with_column(rows, "split", pa.array(splits, pa.string()))
        to.write_table(f"images/{part_name(rows['source'].to_pylist())}", conform(rows, IMAGES))
    return len(rows)
