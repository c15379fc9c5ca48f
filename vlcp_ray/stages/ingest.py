"""Knows how rows of an image set become IMAGES: bytes checked by decoding, labels tied to class names."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray import config, images
from vlcp_ray.schemas import reject, with_column
from vlcp_ray.seeds import seed_for


class Ingest:
    """Row-wise: rows of a source in, the same rows with `label`, `reason` and `detail` out."""

    def __init__(self, settings: config.Ingest, class_names: Sequence[str]) -> None:
        self.settings = settings
        self.class_names = pa.array(class_names, pa.string())

    def __call__(self, table: pa.Table) -> pa.Table:
        """Check every image and label every row.

        Raises:
            ValueError: a row's class_name is not in the class list.
        """
        label = pc.index_in(table["class_name"], value_set=self.class_names)
        if label.null_count:
            unknown = table.filter(pc.is_null(label))["class_name"][0].as_py()
            raise ValueError(f"class_name {unknown!r} is not in the class list of the source")
        table = with_column(table, "label", label.cast(pa.int32()))
        if self.settings.val_fraction:
            table = with_column(table, "split", self._splits(table["image_id"].to_pylist()))
        return reject(table, dict(filter(None, map(_fault, range(len(table)), table["image"].to_pylist()))))

    def _splits(self, image_ids: Sequence[str]) -> pa.Array:
        limit = self.settings.val_fraction * 2**63
        return pa.array(["val" if seed_for(0, "split", image_id) < limit else "train" for image_id in image_ids])


def _fault(row: int, data: bytes) -> tuple[int, tuple[str, str]] | None:
    try:
        images.decode(data)
    except images.ImageError as error:
        return row, (error.reason, str(error))
    return None
