"""The layout `folder`: a folder for each class, in train/ and val/ or without splits."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, Glossary, expand, load_glossary, resolve
from vlcp_ray.sources.image_files import ImageFile, list_images, read_files
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import OUTSIDE, Listed, leaves, limit_of
from vlcp_ray.sources.reader import Part, image_id, list_folders, list_some, split_of

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest


class ImageFolder:
    """Read `train/<class>/*.jpg` and `val/<class>/*.jpg`, or `<class>/*.jpg`, which is all train.

    The images of a class may lie in folders of its folder.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """List the class folders, and no files.

        Raises:
            ConfigError: there are no class folders, or a wanted class has none.
        """
        self.filesystem, self.path, self.max_bytes = filesystem, path, settings.max_bytes
        self.limit = limit_of(filesystem, path, settings.follow_links)
        names = load_glossary(settings.class_list)
        folders = {
            folder: (split, names.canonical(folder.rpartition("/")[2]))
            for split, folder in _class_folders(filesystem, path, self.limit, needs_val=not settings.val_fraction)
        }
        self.folders = {name: found for name, found in folders.items() if not leaves(f"{path}/{name}", self.limit)}
        self.outside = {name: split for name, (split, _) in folders.items() if name not in self.folders}
        check_links(folders, self.folders, settings.classes, names)
        self.subset = bool(settings.classes)
        self.classes: Classes = resolve((key for _, key in self.folders.values()), settings.classes, names)

    @property
    def description(self) -> str:
        splits = sorted({split for split, _ in self.folders.values()})
        n_classes = len({key for _, key in self.folders.values()})
        text = f"an image folder with {' and '.join(splits)}, {self.classes.summary(n_classes)}"
        if not self.outside:
            return text
        return f"{text}; not read are {list_some(sorted(self.outside))}, {OUTSIDE}"

    def parts(self) -> Sequence[Part]:
        wanted = set(self.classes.keys)
        parts = [Part(folder, split, key) for folder, (split, key) in sorted(self.folders.items()) if key in wanted]
        if self.subset:  # a folder of a wanted class was refused
            return parts
        return [*parts, *(Part(folder, split) for folder, split in sorted(self.outside.items()))]

    def read(self, part: Part, done: Container[str]) -> Iterator[pa.Table]:
        infos = list_images(self.filesystem, f"{self.path}/{part.path}", recursive=True, limit=self.limit)
        yield from read_files(self.filesystem, self._files(part, infos, done), self.max_bytes)

    def _files(self, part: Part, infos: Iterable[Listed], done: Container[str]) -> Iterator[ImageFile]:
        for info in infos:
            name = info.path[len(f"{self.path}/{part.path}/") :]
            source = f"{part.path}/{name}".rstrip("/")
            if source not in done:
                # The folder's name, not the class key: two folders of one class may have files of the same name.
                row_id = image_id(part.split, part.path.rpartition("/")[2], name)
                yield ImageFile(info.path, info.size, source, row_id, part.class_key, part.split, info.problem)


def check_links(
    folders: Mapping[str, tuple[str, str]], inside: Container[str], wanted: Sequence[str], names: Glossary
) -> None:
    """Refuse a set without a training class, or without a wanted one, because its folder is a link that leaves the set.

    Args:
        folders: of all classes, with their splits and class keys.
        inside: those that do not leave the set.

    Raises:
        ConfigError: names the folder and the setting.
    """
    lost = {name: key for name, (_, key) in folders.items() if name not in inside}
    keys = set(expand(wanted, names))
    bad = [name for name, key in lost.items() if key in keys]
    if lost and not any(split == "train" for name, (split, _) in folders.items() if name in inside):
        bad = list(lost)
    if bad:
        more = f" (and {len(bad) - 1} more)" if bad[1:] else ""
        raise ConfigError(
            f"ingest.source: the folder {bad[0]}{more} is a link that leaves the image set; set "
            "ingest.follow_links if you know where it leads"
        )


def _class_folders(filesystem: pafs.FileSystem, path: str, limit: str, needs_val: bool) -> list[tuple[str, str]]:
    """List the split and the relative path of every class folder.

    Args:
        limit: the folder that links may not leave, of a local set.
        needs_val: whether the val images of the set itself are used.
    """
    top = list_folders(filesystem, path)
    splits = {name: inner for name, folder in top if split_of(name) and (inner := list_folders(filesystem, folder))}
    if not splits:
        class_folders = [("train", name) for name, _ in top]
    else:
        val = "val" if any(split_of(name) == "val" for name in splits) else "test"
        used = {"train": "train", val: "val"}
        class_folders = [
            (used[split_of(name)], f"{name}/{inner}")
            for name, folders in splits.items()
            for inner, _ in folders
            if split_of(name) in used
        ]
        if needs_val:
            _check_no_images(
                filesystem, limit, [folder for name, folder in top if split_of(name) == "val" and name not in splits]
            )
    if not any(split == "train" for split, _ in class_folders):
        raise ConfigError(
            f"ingest.source: {path} has no class folders; an image folder is train/<class>/*.jpg and val/<class>/*.jpg"
        )
    return class_folders


def _check_no_images(filesystem: pafs.FileSystem, limit: str, folders: Sequence[str]) -> None:
    for folder in folders:
        if list_images(filesystem, folder, recursive=False, limit=limit):
            raise ConfigError(
                f"ingest.source: {folder} has images and no class folders, so their classes are unknown; move each "
                "into a folder of its class, or set ingest.val_fraction, which takes val from train instead"
            )


LAYOUT: Final = Layout(
    "folder",
    "train/<class>/*.jpg with val/<class>/*.jpg",
    lambda filesystem, path: bool(list_folders(filesystem, path)),
    ImageFolder,
)
