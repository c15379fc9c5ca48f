"""Layouts of labelled image sets: the list of them, and how a set is recognised and opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import arrow, cifar, digits, folder, hub, listed, npz, parquet, tiny_imagenet, webdataset
from vlcp_ray.sources.archives import refuse_archives
from vlcp_ray.sources.classes import LISTS
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import leaves, limit_of
from vlcp_ray.sources.locate import locate
from vlcp_ray.sources.reader import Source, list_folders, list_some, listings_kept
from vlcp_ray.store.files import check_access
from vlcp_ray.store.io import content_hash, open_uri, retry
from vlcp_ray.store.uris import strip_secrets

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

#: In the order in which `detects` is called: the most specific layouts first, any folder of folders last.
LAYOUTS: Final[dict[str, Layout]] = {
    layout.name: layout
    for layout in (
        digits.LAYOUT,
        tiny_imagenet.LAYOUT,
        listed.CUB,
        listed.METADATA,
        cifar.LAYOUT,
        parquet.LAYOUT,
        webdataset.LAYOUT,
        arrow.LAYOUT,
        npz.LAYOUT,
        folder.LAYOUT,
    )
}

#: Settings that `hashed_settings` leaves out at their defaults.
_NEWER: Final = ("max_seconds", "follow_links", "config", "class_key", "revision", "max_per_class", "max_val_per_class")


@lru_cache(maxsize=8)
def open_source(settings: "Ingest") -> Source:
    """Open the image set: list its folders, and read labels only where no list names the classes; read no image.

    Raises:
        ConfigError: it does not exist, it is in no known layout, or it lacks a wanted class.
    """
    with _naming_the_source(settings), listings_kept():
        filesystem, path, layout = _recognise(settings)
        return layout.open(filesystem, path, settings)


def recognise(settings: "Ingest") -> Layout:
    """Find the layout of the image set, by the names of its first files.

    Raises:
        ConfigError: it does not exist, or it is in no known layout.
    """
    with _naming_the_source(settings), listings_kept():
        return _recognise(settings)[2]


@contextmanager
def _naming_the_source(settings: "Ingest") -> Iterator[None]:
    """Turn errors of stores into errors that name the image set."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # each storage driver has its own errors
        fix = hub.fix(settings.source)
        raise ConfigError(f"ingest.source: {settings.source} cannot be opened: {error}{fix and f'; {fix}'}") from error


def _recognise(settings: "Ingest") -> tuple[pafs.FileSystem, str, Layout]:
    """Return where the set is, and its layout."""
    uri, _ = hub.at_commit(settings.source, settings.revision)
    if (embedded := LAYOUTS.get(settings.source)) and embedded.embedded:
        if settings.classes or settings.config or settings.class_key or settings.layout not in ("auto", embedded.name):
            raise ConfigError(
                "ingest.source: the embedded digits have one layout and ten classes; leave out layout, classes, config "
                "and class_key"
            )
        return pafs.LocalFileSystem(), "", embedded
    if settings.layout != "auto" and LAYOUTS[settings.layout].embedded:
        raise ConfigError(f"ingest.layout: {settings.source} is not the embedded digits; leave layout out")
    try:
        filesystem, path = open_uri(uri, "ingest.source")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    retry(lambda: check_access(filesystem, path), f"list {settings.source}")
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        fix = hub.fix(settings.source) or "give the image set's folder, file or URI"
        raise ConfigError(f"ingest.source: there is no {settings.source}; {fix}")
    path, layout = _find_layout(filesystem, path, settings, info.is_file)
    if settings.class_key and not layout.has_class_key:
        raise ConfigError(f"ingest.class_key: the layout {layout.name} has no such field; leave it out")
    return filesystem, path, layout


def _find_layout(filesystem: pafs.FileSystem, path: str, settings: "Ingest", is_file: bool) -> tuple[str, Layout]:
    """Return the folder of the set, which may lie in the given one, and its layout."""
    limit = limit_of(filesystem, path, settings.follow_links)
    if settings.config:
        path = _configuration(filesystem, path, settings.config, limit)
    if settings.layout != "auto":
        return path, LAYOUTS[settings.layout]
    refuse_archives(filesystem, path)
    layout = _detect(filesystem, path, is_file)
    if layout is folder.LAYOUT and (found := locate(filesystem, path, limit)) != path:
        return found, _detect(filesystem, found)
    return path, layout


def _configuration(filesystem: pafs.FileSystem, path: str, name: str, limit: str) -> str:
    """Return the folder of a configuration. Raises ConfigError if there is none of that name inside the set."""
    folders = {name: folder for name, folder in list_folders(filesystem, path) if not leaves(folder, limit)}
    if name not in folders:
        raise ConfigError(f"ingest.config: {path} has no folder {name}; it has {list_some(folders) or 'none'}")
    return folders[name]


def hashed_settings(settings: "Ingest") -> dict[str, Any]:
    """Collect the settings that determine IMAGES; of the image set itself nothing is read.

    `max_rejected` and `expect` are left out: no row depends on them. So are newer settings while they have their
    defaults, which change no row: what was read before they existed stays valid.
    """
    fields = settings.model_dump(exclude={"max_rejected", "expect"})
    defaults = {name: type(settings).model_fields[name].default for name in _NEWER}
    fields = {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}
    embedded = settings.source in LAYOUTS and LAYOUTS[settings.source].embedded
    if not embedded:
        is_uri = "://" in settings.source
        fields["source"] = strip_secrets(settings.source) if is_uri else open_uri(settings.source, "ingest.source")[1]
    if settings.class_list and settings.class_list not in LISTS:
        fields["class_list"] = content_hash(settings.class_list)
    return fields


def _detect(filesystem: pafs.FileSystem, path: str, is_file: bool = False) -> Layout:
    for layout in LAYOUTS.values():
        if not (is_file and layout is folder.LAYOUT) and layout.detects(filesystem, path):
            return layout
    if is_file:
        raise ConfigError(
            f"ingest.source: {path} is a file, and no tar, parquet, Arrow or npz file; give the folder of the image set"
        )
    if not filesystem.get_file_info(pafs.FileSelector(path)):
        raise ConfigError(f"ingest.source: {path} is an empty folder; give the one that holds train/ or the images")
    known = "; ".join(layout.summary for layout in LAYOUTS.values() if not layout.embedded)
    raise ConfigError(f"ingest.source: {path} is in none of the layouts that can be read: {known}")
