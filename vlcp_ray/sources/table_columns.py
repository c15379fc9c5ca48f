"""The columns of tables of images: which are the image and the label, and what their values mean."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Glossary
from vlcp_ray.sources.reader import MAX_LABEL, Part, Row, image_id, list_some, utf8

#: Characters of a file name; PATH_MAX of Linux.
MAX_NAME: Final = 4096
#: Rows of a row group or a batch: equal values take next to nothing in a file, but each row takes some memory here.
MAX_ROWS: Final = 2**21
#: A row group or a batch is a bomb if its images take more bytes than both: they do not compress, and few are equal.
BOMB_BYTES: Final = 2**28
BOMB_RATIO: Final = 100  # to the bytes in the file
#: Bytes that Arrow may take for one batch, whatever sizes the file asks for.
MEMORY: Final = 2**31
MEMORY_PER_BYTE: Final = 8  # of max_bytes: one image, packed, unpacked, and in Arrow's buffers
_BATCHES_SEEN: Final = 16
_NAMES_SEEN: Final = 256  # of a batch
_ROWS_SEEN: Final = 1_000  # without names
_IMAGES: Final = ("image", "img", "jpg", "png")
_LABELS: Final = ("label", "labels", "fine_label", "class_name", "wnid", "cls")


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Args:
        image: the column of images.
        label: the column of labels.
        numbers: the class keys in the order of the label numbers; empty if labels are names.
        parts: the image column, or those fields of it that are read.
    """

    image: str
    label: str
    numbers: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The field of file names; empty if there is none."""
        return self.parts[1:]


def find_columns(schema: pa.Schema, known: Glossary, chosen: str) -> Columns:
    """Find the image and the label by the features of `datasets`, by their names or by their types.

    Args:
        chosen: the column of the label, "" for a usual one.

    Raises:
        ConfigError: there is none, or label numbers have no names.
    """
    features = {name: feature for name, feature in _features(schema).items() if name in schema.names}
    image = _first(
        [name for name, feature in features.items() if feature.get("_type") == "Image"],
        [name for name in _IMAGES if name in schema.names],
        [field.name for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0],
    )
    named = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = _first([n for n in _LABELS if n in named], named, [n for n in _LABELS if n in schema.names])
    if chosen:
        if chosen not in schema.names:
            raise ConfigError(
                f"ingest.class_key: the tables have no column {chosen!r}; they have {list_some(schema.names)}"
            )
        label = chosen
    if image is None or label is None:
        raise ConfigError(
            f"ingest.source: the tables have no {'image' if image is None else 'label'} column; "
            f"they have {', '.join(schema.names)}, expected {', '.join(_IMAGES if image is None else _LABELS)}"
            f"{'' if image is None else '; name it with ingest.class_key'}"
        )
    parts = _image_parts(image, schema.field(image).type)
    _check_label(label, schema.field(label).type)
    names = features.get(label, {}).get("names")
    numbers = (
        tuple(known.canonical(utf8(str(n))) for n in names) if isinstance(names, list) and names else known.numbers
    )
    if _is_number(schema.field(label).type):
        if not numbers:
            raise ConfigError(
                f"ingest.class_list: the label numbers in column {label!r} have no names; "
                "give `imagenet1k` or a file with a line for each class, in the order of the numbers"
            )
        return Columns(image, label, numbers, parts)
    return Columns(image, label, (), parts)


def class_keys(labels: pa.Array, columns: Columns, known: Glossary) -> list[str | None]:
    """Convert labels to class keys: None for a missing label or -1, `#` and the number for one without a class.

    A list of one label is that label; of none or several, a missing one.
    """
    values = _only_elements(labels) if _is_list(labels.type) else texts(labels, MAX_LABEL)
    if not columns.numbers:
        return [None if value in (None, "") else known.canonical(str(value)) for value in values]
    return [_numbered(value, columns.numbers) for value in values]


def _only_elements(lists: pa.Array) -> list[Any]:
    """Return the element of each list of one, None for the others."""
    is_one = pc.fill_null(pc.equal(pc.list_value_length(lists), 1), False)
    elements = iter(texts(lists.filter(is_one).flatten(), MAX_LABEL))
    return [next(elements) if one else None for one in is_one.to_pylist()]


def _numbered(value: Any, numbers: Sequence[str]) -> str | None:
    """Return the class key of a label number, which may be a float or a boolean."""
    if value is None or value == -1 or value != value or value % 1:
        return None
    number = int(value)
    return numbers[number] if 0 <= number < len(numbers) else f"#{number}"


def contents_of(images: pa.Array) -> pa.Array:
    """Return the bytes of images."""
    return _fields(images)["bytes"] if pa.types.is_struct(images.type) else images


def file_names(images: pa.Array) -> list[str | None]:
    """Return the file names of images: None where there is none, or one of more bytes than a path can have."""
    names = _fields(images).get("path") if pa.types.is_struct(images.type) else None
    return [None] * len(images) if names is None or not _is_text(names.type) else texts(names, MAX_NAME)


def _fields(structs: pa.Array) -> dict[str, pa.Array]:
    return dict(zip((field.name for field in structs.type), structs.flatten(), strict=True))


def names_differ(batches: Iterable[pa.Array]) -> bool:
    """Return whether the first images have different file names, or only one has a name.

    If the first two or more are equal, the file names identify no image.

    Args:
        batches: columns of images; read until two names or 1,000 rows were seen, 16 batches at most.
    """
    names, rows = list[str](), 0
    for images in islice(batches, _BATCHES_SEEN):
        names += [name for name in file_names(images.slice(0, _NAMES_SEEN)) if name]
        rows += len(images)
        if len(names) > 1 or rows >= _ROWS_SEEN:
            break
    return len(names) < 2 or len(set(names)) > 1


def texts(values: pa.Array, limit: int) -> list[Any]:
    """Convert labels or names to Python: None for text of more bytes than the limit; escaped where it is no UTF-8."""
    if pa.types.is_dictionary(values.type):  # one string for all its rows, however long it is
        used = values.indices.unique().drop_null()
        known = dict(zip(used.to_pylist(), texts(values.dictionary.take(used), limit), strict=True))
        return [known.get(number) for number in values.indices.to_pylist()]
    if _is_text(values.type):
        values = pc.if_else(pc.greater(pc.binary_length(values), limit), None, values)
    try:
        return [utf8(value) if isinstance(value, str) else value for value in values.to_pylist()]
    except UnicodeDecodeError:
        raw = pc.cast(values, pa.large_binary() if pa.types.is_large_string(values.type) else pa.binary())
        return [value and value.decode("utf-8", "backslashreplace") for value in raw.to_pylist()]


def make_row(part: Part, number: int, key: str | None, image: tuple[Any, str | None], max_bytes: int) -> Row:
    """Make the row of an image.

    Args:
        number: of the row in its file.
        key: of its class, None without a label.
        image: its bytes, an Arrow buffer or None, and its file name or None.
        max_bytes: the largest size.
    """
    content, name = image
    if not name:
        # In sets without file names (the hub's CIFAR) the content identifies an image, in whatever order the rows are.
        name = hashlib.blake2b(content or b"", digest_size=10).hexdigest()
    row_id, size = image_id(part.split, key or "", name), content.size if content else 0
    source = f"{part.path}#{number}"
    if size > max_bytes:
        return Row(row_id, key or "", part.split, source, b"", "too_large", f"{size} bytes, the limit is {max_bytes}")
    error = () if key else ("no_label", f"the label is null or -1, or has more than {MAX_LABEL} bytes")
    return Row(row_id, key or "", part.split, source, content.to_pybytes() if content else b"", *error)


def _image_parts(name: str, kind: pa.DataType) -> tuple[str, ...]:
    """Return the image column, or its fields `bytes` and `path`. Raises ConfigError if it has no bytes."""
    if _is_bytes(kind):
        return (name,)
    fields = (
        {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)} if pa.types.is_struct(kind) else {}
    )
    if not _is_bytes(fields.get("bytes", pa.null())):
        raise ConfigError(f"ingest.source: column {name!r} of the tables is {kind}, not the bytes of images")
    has_names = _is_text(fields.get("path", pa.null()))
    return (f"{name}.bytes", f"{name}.path") if has_names else (f"{name}.bytes",)


def _check_label(name: str, kind: pa.DataType) -> None:
    plain = kind.value_type if pa.types.is_dictionary(kind) or _is_list(kind) else kind
    checks: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_null,
    )
    if not any(check(plain) for check in checks) and not isinstance(kind, pa.BaseExtensionType):
        raise ConfigError(f"ingest.source: column {name!r} of the tables is {kind}, not names or numbers")


def _is_number(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) or _is_list(kind) else kind
    return bool(pa.types.is_integer(plain) or pa.types.is_floating(plain) or pa.types.is_boolean(plain))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _first(*choices: Sequence[str]) -> str | None:
    return next((choice[0] for choice in choices if choice), None)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """Read the features that Hugging Face's `datasets` writes into the schema's metadata; {} if they are no such."""
    content = (schema.metadata or {}).get(b"huggingface")
    try:
        features = (json.loads(content).get("info", {}).get("features") or {}) if content else {}
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError, RecursionError):
        return {}
