"""What the layouts of tables share: their files, columns and classes, and whether file names identify images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, load_glossary, resolve
from vlcp_ray.sources.local_files import limit_of
from vlcp_ray.sources.reader import find_shards, format_split_counts
from vlcp_ray.sources.shards import ShardError
from vlcp_ray.sources.table_columns import MEMORY, MEMORY_PER_BYTE, Columns, find_columns, names_differ
from vlcp_ray.store.tables import check_types

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest


class TableFiles(ABC):
    """An image set in files of tables. A layout adds how a file is opened and read."""

    layout: str
    extension: str
    #: What a set and what a file is called in messages.
    title: str
    file_title: str

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """List the files and read one schema; labels are read only if no list names the classes.

        Raises:
            ConfigError: there is no image or label column, or label numbers have no names.
        """
        self.filesystem, self.max_bytes = filesystem, settings.max_bytes
        self.memory = MEMORY + MEMORY_PER_BYTE * settings.max_bytes  # bytes that reading a batch may take
        self.limit = limit_of(filesystem, path, settings.follow_links)
        self.path, files = find_shards(filesystem, path, self.extension, self.limit)
        self.files = self._files_of_set(files, settings)
        self.glossary, self.label = load_glossary(settings.class_list), settings.class_key
        self.keys = frozenset(self._first_columns().numbers or self._read_classes())
        self.classes: Classes = resolve(self.keys, settings.classes, self.glossary)
        self.wanted = frozenset(self.classes.keys)
        #: Whether the file names of the first images differ: equal ones say nothing about an image.
        self.has_names = names_differ(self._first_images())

    @property
    def splits(self) -> frozenset[str]:
        return frozenset(self.files.values())

    @property
    def description(self) -> str:
        return f"{self.title} with {format_split_counts(self.files)}, {self.classes.summary(len(self.keys))}"

    def _files_of_set(self, files: dict[str, str], settings: "Ingest") -> dict[str, str]:
        """Return the files, with their splits, that are of the set. Raises ConfigError if they are several sets."""
        return files

    @abstractmethod
    def _read_columns(self, path: str) -> Columns:
        """Find the columns of a file.

        Raises:
            ShardError: it is damaged.
            ConfigError: it lacks a column, or one has a type that is not read.
        """

    @abstractmethod
    def _read_classes(self) -> set[str]:
        """Read the keys of all classes from the label columns; what is damaged is left out."""

    @abstractmethod
    def _first_images(self) -> Iterator[pa.Array]:
        """Yield columns of images with their file names, the first rows first; nothing if they have none."""

    def _first_columns(self) -> Columns:
        """Find the columns of the first file that can be read.

        Raises:
            ConfigError: none can, or it has no image or no label.
        """
        errors = []
        for path in self.files:
            try:
                return self._read_columns(path)
            except ShardError as error:
                errors.append(f"{path} cannot be read as {self.file_title} ({error}); download it again")
        raise ConfigError(f"ingest.source: {errors[0] if errors else f'{self.path} has no .{self.extension} file'}")

    def _find_columns(self, schema: pa.Schema, path: str) -> Columns:
        """Find the columns of a file by its schema. Raises ConfigError as `_read_columns`."""
        columns = find_columns(schema, self.glossary, self.label)
        try:
            check_types(schema, [columns.image, columns.label], path, "write it as plain bytes, text or numbers")
        except ValueError as error:
            raise ConfigError(f"ingest.source: {error}") from error
        return columns
