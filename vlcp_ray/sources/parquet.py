"""The layout `parquet`: tables of the Hugging Face hub, with images as struct<bytes, path> and named label numbers."""

import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, Glossary, load_glossary, resolve
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.reader import Part, Row, find_shards, format_split_counts, has_shards, image_id, tables
from vlcp_ray.store.tables import check_types

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

_IMAGES: Final = ("image", "img", "jpg", "png")
_LABELS: Final = ("label", "labels", "fine_label", "class_name", "wnid", "cls")
_BATCH: Final = 256
_MANY_FILES: Final = 64  # enough parts for all workers; fewer files are split at their row groups
_ROWS_PER_PART: Final = 2_000


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Args:
        image: the column of images.
        label: the column of labels.
        numbers: the class keys in the order of the label numbers; empty if labels are names.
    """

    image: str
    label: str
    numbers: tuple[str, ...]


class Parquet:
    """Read `train-*.parquet` and `validation-*.parquet`, as the hub serves them."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """List the files and read one schema; labels are read only if no list names the classes.

        Raises:
            ConfigError: there is no image or label column, or label numbers have no names.
        """
        self.filesystem = filesystem
        self.path, self.files = find_shards(filesystem, path, "parquet")
        self.glossary = load_glossary(settings.class_list)
        _, columns = self._open(next(iter(self.files)))
        self.keys = frozenset(columns.numbers or self._read_classes())
        self.classes: Classes = resolve(self.keys, settings.classes, self.glossary)
        self.wanted = frozenset(self.classes.keys)

    @property
    def description(self) -> str:
        return f"parquet with {format_split_counts(self.files)}, {self.classes.summary(len(self.keys))}"

    def parts(self) -> Sequence[Part]:
        """List a part per file, or, for fewer than 64 files, per row groups of about 2,000 rows."""
        files = sorted(self.files.items())
        if len(files) >= _MANY_FILES:
            return [Part(path, split) for path, split in files]
        return [part for path, split in files for part in self._split_file(path, split)]

    def _split_file(self, path: str, split: str) -> Iterator[Part]:
        metadata = self._open(path)[0].metadata
        first, rows = 0, 0
        for group in range(metadata.num_row_groups):
            rows += metadata.row_group(group).num_rows
            if rows >= _ROWS_PER_PART or group == metadata.num_row_groups - 1:
                yield Part(path, split, first_row_group=first, end_row_group=group + 1)
                first, rows = group + 1, 0

    def read(self, part: Part, done: Container[str]) -> Iterator[pa.Table]:
        """See `Source.read`. Reads images only from row groups that have a wanted row not yet done.

        A label number is named by the class names in its own file.
        """
        file, columns = self._open(part.path)
        first = sum(file.metadata.row_group(group).num_rows for group in range(part.first_row_group))
        for group in range(part.first_row_group, part.end_row_group or file.num_row_groups):
            try:
                yield from self._read_group(part, file, columns, group, first, done)
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                reason = " ".join(str(error).split())
                raise ConfigError(f"ingest.source: {part.path} is damaged ({reason}); download it again") from error
            first += file.metadata.row_group(group).num_rows

    def _read_group(
        self, part: Part, file: Any, columns: Columns, group: int, first: int, done: Container[str]
    ) -> Iterator[pa.Table]:
        """Read the wanted rows of a row group, whose first row is row `first` of the file."""
        keys = self._class_keys(file.read_row_group(group, columns=[columns.label])[columns.label], columns)
        rows = [
            row
            for row, key in enumerate(keys)
            if (key in self.wanted or key not in self.keys) and f"{part.path}#{first + row}" not in done
        ]
        if rows:
            images = zip(rows, _read_images(file, group, columns.image, rows), strict=True)
            yield from tables(_row(part, first + row, keys[row], *image) for row, image in images)

    def _class_keys(self, labels: pa.ChunkedArray | pa.Array, columns: Columns) -> list[str | None]:
        """Convert labels to class keys: None for a missing label, `#` and the number for one without a class."""
        values, numbers = labels.to_pylist(), columns.numbers
        if not numbers:
            return [None if v is None or v == "" else self.glossary.canonical(str(v)) for v in values]
        return [v if v is None else numbers[v] if 0 <= v < len(numbers) else f"#{v}" for v in values]

    def _read_classes(self) -> set[str]:
        """Read the keys of all classes from the label columns."""
        keys: set[str] = set()
        for path in self.files:
            file, columns = self._open(path)
            labels = pc.unique(file.read([columns.label])[columns.label])
            keys |= {key for key in self._class_keys(labels, columns) if key}
        return keys

    def _open(self, path: str) -> tuple[Any, Columns]:
        from pyarrow import parquet  # slow to import: it imports pandas

        try:
            file = parquet.ParquetFile(self.filesystem.open_input_file(f"{self.path}/{path}"))
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(
                f"ingest.source: {path} cannot be read as parquet ({error}); download it again"
            ) from error
        columns = _find_columns(file.schema_arrow, self.glossary)
        try:
            used = [columns.image, columns.label]
            check_types(file.schema_arrow, used, path, "write it as plain bytes, text or numbers")
        except ValueError as error:
            raise ConfigError(f"ingest.source: {error}") from error
        return file, columns


def _read_images(file: Any, group: int, column: str, rows: Sequence[int]) -> Iterator[tuple[bytes, str | None]]:
    """Read the bytes and the file name of some rows of a row group, in their order."""
    start, wanted = 0, pa.array(rows, pa.int64())
    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[column]):
        inside = pc.and_(pc.greater_equal(wanted, start), pc.less(wanted, start + len(batch)))
        for image in batch.column(0).take(pc.subtract(wanted.filter(inside), start)).to_pylist():
            fields = image if isinstance(image, dict) else {"bytes": image}
            yield fields.get("bytes") or b"", fields.get("path")
        start += len(batch)


def _row(part: Part, number: int, key: str | None, content: bytes, name: str | None) -> Row:
    # In sets without file names (the hub's CIFAR) the content identifies an image, in whatever order the rows are.
    name = name or hashlib.blake2b(content, digest_size=10).hexdigest()
    row_id = image_id(part.split, key or "", name)
    error = () if key else ("no_label", "the label is null")
    return Row(row_id, key or "", part.split, f"{part.path}#{number}", content, *error)


def _find_columns(schema: pa.Schema, known: Glossary) -> Columns:
    features = _features(schema)
    image = _first(
        [name for name, feature in features.items() if feature.get("_type") == "Image"],
        [name for name in _IMAGES if name in schema.names],
        [field.name for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0],
    )
    named = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = _first([n for n in _LABELS if n in named], named, [n for n in _LABELS if n in schema.names])
    if image is None or label is None:
        raise ConfigError(
            f"ingest.source: the parquet files have no {'image' if image is None else 'label'} column; "
            f"they have {', '.join(schema.names)}, expected {', '.join(_IMAGES if image is None else _LABELS)}"
        )
    kind = schema.field(image).type
    if not (_is_bytes(kind) or pa.types.is_struct(kind)):
        raise ConfigError(f"ingest.source: column {image!r} of the parquet files is {kind}, not the bytes of images")
    names = features.get(label, {}).get("names") or ()
    numbers = tuple(map(known.canonical, names)) or known.numbers
    if pa.types.is_integer(schema.field(label).type):
        if not numbers:
            raise ConfigError(
                f"ingest.class_list: the label numbers in column {label!r} have no names; "
                "give `imagenet1k` or a file with a line for each class, in the order of the numbers"
            )
        return Columns(image, label, numbers)
    return Columns(image, label, ())


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _first(*choices: Sequence[str]) -> str | None:
    return next((choice[0] for choice in choices if choice), None)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """Read the features that Hugging Face's `datasets` writes into the schema's metadata."""
    content = (schema.metadata or {}).get(b"huggingface")
    features = (json.loads(content).get("info", {}).get("features") or {}) if content else {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


LAYOUT: Final = Layout(
    "parquet",
    "train-*.parquet",
    lambda filesystem, path: has_shards(filesystem, path, "parquet"),
    Parquet,
)
