"""Read parquet files without running code that they bring: extension types that are not ours are refused.

Arrow lets a file choose the Python class of a column by the name of an extension type. Ray registers
`ray.data.arrow_pickled_object`, whose values are unpickled when they are read: that runs any code.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa


def check_types(schema: pa.Schema, columns: Sequence[str] | None, place: str, fix: str) -> None:
    """Refuse columns whose values Arrow would build with code that the file names.

    Args:
        schema: as Arrow reads it from the file.
        columns: those that are read; all by default.
        place: the file or folder, for the error.
        fix: what a user should do, for the error.

    Raises:
        ValueError: a column, or a part of it, has an extension type other than a fixed-shape tensor.
    """
    for field in schema:
        if columns is not None and field.name not in columns:
            continue
        for kind in _extension_types(field.type):
            name = kind.extension_name
            raise ValueError(f"{place}: column {field.name!r} has the type {name}, which is not read; {fix}")


def _extension_types(kind: pa.DataType) -> Iterator[Any]:
    """List the extension types in a type, at any depth, besides fixed-shape tensors of numbers."""
    if isinstance(kind, pa.BaseExtensionType):
        if not isinstance(kind, pa.FixedShapeTensorType):
            yield kind
        yield from _extension_types(kind.storage_type)
    elif pa.types.is_dictionary(kind):
        yield from _extension_types(kind.value_type)
    elif pa.types.is_nested(kind):
        for number in range(kind.num_fields):
            yield from _extension_types(kind.field(number).type)
