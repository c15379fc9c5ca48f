"""Build inputs that would run code where a reader trusts them: the code only writes a marker file."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa


class _Payload:
    """Unpickles to a value, and writes the marker file."""

    def __init__(self, marker: Path, value: Any) -> None:
        self.marker, self.value = marker, value

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"(open({str(self.marker)!r}, 'a').write('x'), {self.value!r})[1]",)


def with_pickled_column(table: pa.Table, name: str, marker: Path) -> pa.Table:
    """Replace a column by one that the file declares as Ray's pickled objects; reading a value writes the marker."""
    extension = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    field = pa.field(name, pa.large_binary(), metadata=extension)
    values = [pickle.dumps(_Payload(marker, value)) for value in table[name].to_pylist()]
    return table.set_column(table.column_names.index(name), field, pa.array(values, pa.large_binary()))
