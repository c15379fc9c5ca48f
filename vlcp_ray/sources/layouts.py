"""Knows which layout an image set is in: by looking, or by what the job says."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from pyarrow import fs as pafs

from vlcp_ray import config
from vlcp_ray.filesystems import open_uri
from vlcp_ray.models.folders import identity
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import LISTS
from vlcp_ray.sources.embedded import Digits
from vlcp_ray.sources.files import ImageFolder, TinyImageNet, folders_in, is_tiny_imagenet
from vlcp_ray.sources.parquet import Parquet
from vlcp_ray.sources.raw import Source
from vlcp_ray.sources.tars import WebDataset

_EMBEDDED: Final = "digits"
_READERS: Final[Mapping[str, Callable[[pafs.FileSystem, str, config.Ingest], Source]]] = {
    "tiny-imagenet": TinyImageNet,
    "parquet": Parquet,
    "webdataset": WebDataset,
    "folder": ImageFolder,
}
_FOLDERS: Final = 8  # data/, train/ and val/ come among the first; a thousand class folders need no look


@lru_cache(maxsize=8)
def open_source(settings: config.Ingest) -> Source:
    """The image set that the settings name. Its folders and one of its files are looked at; no image is read.

    Raises:
        ConfigError: it is not there, its layout is not known, or its classes are not those that are wanted.
    """
    if settings.source == _EMBEDDED:
        if settings.classes or settings.layout not in ("auto", _EMBEDDED):
            raise ConfigError("ingest.source: the embedded digits have one layout and ten classes; leave both out")
        return Digits()
    if settings.layout == _EMBEDDED:
        raise ConfigError(f"ingest.layout: {settings.source} is not the embedded digits; leave layout out")
    try:
        filesystem, path = open_uri(settings.source, "ingest.source")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        if filesystem.get_file_info(path).type == pafs.FileType.NotFound:
            raise ConfigError(f"ingest.source: there is no {settings.source}; give the image set's folder, file or URI")
        layout = _recognise(filesystem, path) if settings.layout == "auto" else settings.layout
        return _READERS[layout](filesystem, path, settings)
    except ConfigError:
        raise
    except Exception as error:  # each driver of a store has errors of its own
        raise ConfigError(f"ingest.source: {settings.source} cannot be opened: {error}") from error


def science(settings: config.Ingest) -> dict[str, Any]:
    """What a fingerprint holds of an image set: where it is and what is wanted of it. Nothing is read.

    `max_rejected` and `expect` are left out: no row depends on them.
    """
    fields = settings.model_dump(exclude={"max_rejected", "expect"})
    if settings.source != _EMBEDDED and "://" not in settings.source:
        fields["source"] = open_uri(settings.source, "ingest.source")[1]
    if settings.class_list and settings.class_list not in LISTS:
        fields["class_list"] = identity(settings.class_list)
    return fields


def _recognise(filesystem: pafs.FileSystem, path: str) -> str:
    if is_tiny_imagenet(filesystem, path):
        return "tiny-imagenet"
    for layout, extension in (("parquet", "parquet"), ("webdataset", "tar")):
        if _has_shards(filesystem, path, extension):
            return layout
    if folders_in(filesystem, path):
        return "folder"
    if not filesystem.get_file_info(path).is_file and not filesystem.get_file_info(pafs.FileSelector(path)):
        raise ConfigError(f"ingest.source: {path} is an empty folder; give the one that holds train/ or the images")
    raise ConfigError(
        f"ingest.source: {path} is none of the layouts that can be read: train/<class>/*.jpg with val/<class>/*.jpg, "
        "train-*.parquet, *train*.tar (WebDataset), Tiny-ImageNet's tree"
    )


def _has_shards(filesystem: pafs.FileSystem, path: str, extension: str) -> bool:
    """Whether there are files with an extension, at the top or one folder down; of many folders some are seen."""
    info = filesystem.get_file_info(path)
    if info.is_file:
        return bool(info.extension == extension)
    places = [path, *(folder for _, folder in folders_in(filesystem, path)[:_FOLDERS])]
    listed = (filesystem.get_file_info(pafs.FileSelector(place)) for place in places)
    return any(info.is_file and info.extension == extension for infos in listed for info in infos)
