"""Check images by decoding them, and add label and class name."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.schemas import reasons, reject, with_column
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.ingest.check import checker


class LabelRows:
    """Row-wise: add label and class name to the rows of a source (`sources.reader.RAW`)."""

    def __init__(self, settings: Ingest, keys: Sequence[str], names: Sequence[str]) -> None:
        """Store the settings and the classes.

        Args:
            keys: the class keys in the order of their labels.
            names: the class names in the same order.
        """
        self.settings = settings
        self.keys = pa.array(keys, pa.string())
        self.names = pa.array(names, pa.string())

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add `label` and `class_name`; in rejected rows without a class they are -1 and "".

        Rejects rows without a class (`no_label`, `unknown_label`), without bytes (`empty`), over the limits
        (`too_large`, `too_slow`), and with bytes that cannot be decoded (`undecodable`).
        """
        label = pc.index_in(table["class_key"], value_set=self.keys)
        errors = self._find_errors(table, label)
        table = with_column(table, "label", pc.fill_null(label, -1))
        table = with_column(table, "class_name", pc.fill_null(self.names.take(label), ""))
        if self.settings.val_fraction:
            table = with_column(table, "split", self._splits(table["image_id"].to_pylist()))
        return reject(table, errors)

    def _find_errors(self, table: pa.Table, label: pa.ChunkedArray) -> dict[int, tuple[str, str]]:
        """Check the rows that the source could read; returns row number -> (reason, detail)."""
        columns = (table["class_key"], pc.is_null(label), reasons(table), table["image"])
        rows = enumerate(zip(*(c if isinstance(c, list) else c.to_pylist() for c in columns), strict=True))
        found: dict[int, tuple[str, str] | None] = {}
        contents: dict[int, bytes] = {}
        for row, (key, has_no_label, reason, content) in rows:
            if reason:
                continue
            found[row] = self._find_error(key, has_no_label, content)
            if not found[row]:
                contents[row] = content
        check = checker(self.settings.max_pixels, self.settings.max_seconds)
        found |= zip(contents, check(list(contents.values())), strict=True)
        return {row: error for row, error in found.items() if error}

    def _find_error(self, key: str, has_no_label: bool, content: bytes) -> tuple[str, str] | None:
        """Find what is wrong with a row without decoding its image."""
        if has_no_label:
            if not key:
                return "no_label", "the row has no label"
            return "unknown_label", f"{key!r} is not in the class list"
        if len(content) > self.settings.max_bytes:
            return "too_large", f"{len(content)} bytes, the limit is {self.settings.max_bytes}"
        return None

    def _splits(self, image_ids: Sequence[str]) -> pa.Array:
        return pa.array([split_of_id(image_id, self.settings.val_fraction) for image_id in image_ids])


def split_of_id(image_id: str, val_fraction: float) -> str:
    """Return the split of an image of train, a share of which becomes val."""
    return "val" if seed_for(0, "split", image_id) < val_fraction * 2**63 else "train"
