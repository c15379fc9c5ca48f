"""The layout `folder`: a folder for each class, in train/ and val/ or without splits."""

import posixpath
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, Glossary, expand, load_glossary, resolve
from vlcp_ray.sources.image_files import ImageFile, list_images, listing, read_files
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import OUTSIDE, Listed, leaves, limit_of
from vlcp_ray.sources.locate import has_data, has_train, holds_images
from vlcp_ray.sources.reader import (
    Listing,
    Part,
    image_id,
    list_folder,
    list_folders,
    list_some,
    split_of,
    split_of_folder,
)
from vlcp_ray.sources.val_lists import ValList, find_val_list

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

#: Names of folders that hold classes, images or something else, but are no class.
NO_CLASSES: Final = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "data", "dataset", "datasets", "default"}
    | {"image", "images", "img", "imgs", "jpegimages", "label", "labels", "annotation", "annotations"}
)
_SPLIT_AT_END: Final = re.compile(r"[_.-](train|training|val|valid|validation|test|testing)$")
_CHECKED: Final = 8  # folders, of a thousand that are all alike

#: How images of val are counted whose class has no folder in train.
OTHER_CLASSES: Final = "val images of classes that train lacks"


class ImageFolder:
    """Read `train/<class>/*.jpg` and `val/<class>/*.jpg`, or `<class>/*.jpg`, which is all train.

    The images of a class may lie in folders of its folder. The val images may lie in one folder, with a list of their
    classes: see `val_lists`.
    """

    layout = "folder"

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """List the class folders, and no files.

        Raises:
            ConfigError: there are no class folders, they are no classes, or a wanted class has none.
        """
        self.filesystem, self.path, self.max_bytes = filesystem, path, settings.max_bytes
        self.limit = limit_of(filesystem, path, settings.follow_links)
        self.glossary = load_glossary(settings.class_list)
        tree = list_tree(filesystem, path, self.limit, needs_val=not settings.val_fraction)
        if settings.layout == "auto":
            check_tree(filesystem, path, tree)
        self.flat_val, self.val_list, self.note = tree.flat_val, tree.val_list, tree.note
        folders = {
            folder: (split, self.glossary.canonical(folder.rpartition("/")[2])) for split, folder in tree.class_folders
        }
        self.folders = {name: found for name, found in folders.items() if not leaves(f"{path}/{name}", self.limit)}
        self.outside = {name: split for name, (split, _) in folders.items() if name not in self.folders}
        check_links(folders, self.folders, settings.classes, self.glossary)
        self.subset = bool(settings.classes)
        self.keys = frozenset(key for _, key in self.folders.values())
        self.classes: Classes = resolve(self.keys, settings.classes, self.glossary)
        names = Counter((split, folder.rpartition("/")[2]) for folder, (split, _) in folders.items())
        self.repeated = frozenset(name for name, count in names.items() if count > 1)

    @property
    def splits(self) -> frozenset[str]:
        found = {split for split, key in self.folders.values() if key in self.classes.keys}
        return frozenset(found | ({"val"} if self.flat_val else set()))

    @property
    def description(self) -> str:
        splits = sorted({split for split, _ in self.folders.values()} | ({"val"} if self.flat_val else set()))
        text = f"an image folder with {' and '.join(splits)}, {self.classes.summary(len(self.keys))}"
        if self.val_list:
            text = f"{text}, those of val from {self.val_list.name}"
        if self.note:
            text = f"{text}; {self.note}"
        if not self.outside:
            return text
        return f"{text}; not read are {list_some(sorted(self.outside))}, {OUTSIDE}"

    def parts(self) -> Sequence[Part]:
        wanted = set(self.classes.keys)
        parts = [Part(folder, split, key) for folder, (split, key) in sorted(self.folders.items()) if key in wanted]
        if self.flat_val:
            parts.append(Part(self.flat_val, "val"))
        if self.subset:  # a folder of a wanted class was refused
            return parts
        return [*parts, *(Part(folder, split) for folder, split in sorted(self.outside.items()))]

    def images(self, part: Part, skipped: Counter[str] | None = None, ids: bool = False) -> Iterator[Listing]:
        yield from map(listing, self._list(part, (), skipped))

    def read(self, part: Part, done: Container[str], skipped: Counter[str] | None = None) -> Iterator[pa.Table]:
        yield from read_files(self.filesystem, self._list(part, done, skipped), self.max_bytes)

    def _list(self, part: Part, done: Container[str], skipped: Counter[str] | None) -> Iterator[ImageFile]:
        is_flat = part.path == self.flat_val
        infos = list_images(self.filesystem, f"{self.path}/{part.path}", not is_flat, self.limit, skipped)
        skipped = Counter() if skipped is None else skipped
        return self._flat_files(part, infos, done, skipped) if is_flat else self._files(part, infos, done)

    def _files(self, part: Part, infos: Iterable[Listed], done: Container[str]) -> Iterator[ImageFile]:
        # The folder's name, not the class key: two folders of one class may have files of the same name.
        folder = part.path.rpartition("/")[2]
        if (part.split, folder) in self.repeated:  # train.X1/cat and train.X2/cat
            folder = part.path
        for info in infos:
            name = info.path[len(f"{self.path}/{part.path}/") :]
            source = f"{part.path}/{name}".rstrip("/")
            if source not in done:
                row_id = image_id(part.split, folder, name)
                yield ImageFile(info.path, info.size, source, row_id, part.class_key, part.split, info.problem)

    def _flat_files(
        self, part: Part, infos: Iterable[Listed], done: Container[str], skipped: Counter[str]
    ) -> Iterator[ImageFile]:
        """Yield the images of a flat folder that are of a wanted class, or in no list; others are counted."""
        if self.val_list is None:
            raise ValueError(f"{part.path} has no list of classes")
        labels, wanted, infos = self.val_list.read(self.filesystem), set(self.classes.keys), list(infos)
        named = {name for name, label in labels.items() if self.glossary.canonical(label) in wanted}
        skipped.update(self.val_list.missing(named, (info.base_name for info in infos), part.path))
        for info in infos:
            key = self.glossary.canonical(labels.get(posixpath.splitext(info.base_name)[0], ""))
            source = f"{part.path}/{info.base_name}"
            if key and key not in self.keys:
                skipped[OTHER_CLASSES] += 1
            elif (key in wanted or not key) and source not in done:
                row_id = image_id(part.split, key, info.base_name)
                yield ImageFile(info.path, info.size, source, row_id, key, part.split, info.problem)


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
    keys = set(expand(wanted, names, {key for _, key in folders.values()}))
    bad = [name for name, key in lost.items() if key in keys]
    if lost and not any(split == "train" for name, (split, _) in folders.items() if name in inside):
        bad = list(lost)
    if bad:
        more = f" (and {len(bad) - 1} more)" if bad[1:] else ""
        raise ConfigError(
            f"ingest.source: the folder {bad[0]}{more} is a link that leaves the image set; set "
            "ingest.follow_links if you know where it leads"
        )


@dataclass(frozen=True)
class Tree:
    """The folders of an image set.

    Args:
        class_folders: the split and the relative path of each.
        others: the paths of folders beside those of the splits.
        flat_val: the relative path of a folder of val images without class folders, or "".
        val_list: the list of their classes.
        note: what is there of a val that has no images, or "".
    """

    class_folders: Sequence[tuple[str, str]]
    others: Sequence[str] = ()
    flat_val: str = ""
    val_list: ValList | None = None
    note: str = ""


def list_tree(filesystem: pafs.FileSystem, path: str, limit: str, needs_val: bool) -> Tree:
    """List the class folders of an image set.

    Args:
        limit: the folder that links may not leave, of a local set.
        needs_val: whether the val images of the set itself are used.

    Raises:
        ConfigError: there are no class folders, or val images have no classes.
    """
    top = list_folders(filesystem, path)
    if not has_train(filesystem, top):
        if not top or all(split_of_folder(name) for name, _ in top):
            raise ConfigError(
                f"ingest.source: {path} has no class folders{' of train' if top else ''}; an image folder is "
                "train/<class>/*.jpg and val/<class>/*.jpg, or <class>/*.jpg"
            )
        return Tree([("train", name) for name, _ in top])
    inner = {name: _class_folders(filesystem, folder) for name, folder in top if split_of_folder(name)}
    vals = [name for name in inner if split_of_folder(name) == "val"]
    val = "val" if any(inner[name] or has_data(filesystem, f"{path}/{name}") for name in vals) else "test"
    used = {"train": "train", val: "val"} if needs_val else {"train": "train"}
    found = [
        (used[split_of_folder(split)], f"{split}/{name}")
        for split, names in inner.items()
        for name in names
        if split_of_folder(split) in used
    ]
    if not any(split == "train" for split, _ in found):
        raise ConfigError(f"ingest.source: {path} has no class folders of train; move each image into one")
    others = [folder for name, folder in top if not split_of_folder(name)]
    flat, val_list, note = "", None, ""
    if needs_val:
        flat, val_list = _find_flat_val(filesystem, path, limit, [name for name in inner if not inner[name]])
    if needs_val and not flat and not any(split == "val" for split, _ in found):
        note = _note_on_val(filesystem, path, limit, vals)
    return Tree(found, others, flat, val_list, note)


def _note_on_val(filesystem: pafs.FileSystem, path: str, limit: str, vals: Sequence[str]) -> str:
    """Return that there is a list of the classes of val, though there are no images of val."""
    val_list = find_val_list(filesystem, path, f"{path}/{vals[0] if vals else 'val'}", limit)
    if val_list is None:
        return ""
    if not vals:
        return f"there is {val_list.name} but no val"
    try:
        return f"{vals[0]} has no images; {val_list.name} names {len(val_list.read(filesystem)):,}"
    except ConfigError:  # only a note: no image of val is read
        return f"{vals[0]} has no images; there is {val_list.name}, which cannot be read"


def _class_folders(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """List the folders of a split; an empty one called images is left behind where val was sorted into classes."""
    return [
        name
        for name, path in list_folders(filesystem, folder)
        if name.lower() not in NO_CLASSES or list_folder(filesystem, path)
    ]


def _find_flat_val(
    filesystem: pafs.FileSystem, path: str, limit: str, splits: Sequence[str]
) -> tuple[str, ValList | None]:
    """Find the folder of val images without class folders, and the list of their classes.

    Args:
        splits: the folders of splits that have no class folders.

    Raises:
        ConfigError: there is no such list.
    """
    for name in splits:
        if split_of_folder(name) == "val" and list_images(filesystem, f"{path}/{name}", False, limit):
            val_list = find_val_list(filesystem, path, f"{path}/{name}", limit)
            if val_list is None:
                raise ConfigError(
                    f"ingest.source: {path}/{name} has images and no class folders, so their classes are unknown; "
                    "move each into a folder of its class, or put Kaggle's LOC_val_solution.csv into the folder of the "
                    "image set, or set ingest.val_fraction, which takes val from train instead"
                )
            return name, val_list
    return "", None


def check_tree(filesystem: pafs.FileSystem, path: str, tree: Tree) -> None:
    """Refuse folders that cannot be classes, where the layout was not named by the user.

    Raises:
        ConfigError: names the folder, and what mends it.
    """
    meant = 'set ingest.layout = "folder" if they are classes'
    for _, folder in tree.class_folders:
        name = folder.rpartition("/")[2]
        if name.lower() in NO_CLASSES:
            raise ConfigError(
                f"ingest.source: {path} has the folder {folder}, which would be a class named {name!r}; give the "
                f"folder that holds the class folders, or {meant}"
            )
        if "/" not in folder and _SPLIT_AT_END.search(name.lower()):
            raise ConfigError(
                f"ingest.source: {path} has the folder {folder}; if it is a split, rename it to "
                f"{split_of(_SPLIT_AT_END.findall(name.lower())[-1])}, else {meant}"
            )
    if loose := [folder for folder in tree.others[:_CHECKED] if holds_images(filesystem, folder)]:
        raise ConfigError(
            f"ingest.source: {path} has train and beside it folders with images: {list_some(map(_base, loose))}; move "
            'them into train or val, or set ingest.layout = "folder" to leave them out'
        )
    train = [f"{path}/{folder}" for split, folder in tree.class_folders if split == "train"]
    _check_depth(filesystem, path, train[:_CHECKED], meant)


def _check_depth(filesystem: pafs.FileSystem, path: str, folders: Sequence[str], meant: str) -> None:
    """Refuse class folders that hold the class folders themselves: only folders, whose names never repeat."""
    if len(folders) < 2 or any(has_data(filesystem, folder) for folder in folders):
        return
    inner = [[name for name, _ in list_folders(filesystem, folder)] for folder in folders]
    names = [name for names in inner for name in names]
    if len(set(names)) == len(names) > len(folders):
        raise ConfigError(
            f"ingest.source: the folders of {path} hold only folders: {_base(folders[0])} has {list_some(inner[0])}; "
            f"move the class folders into one folder, or {meant}"
        )


def _base(path: str) -> str:
    return path.rpartition("/")[2]


LAYOUT: Final = Layout(
    "folder",
    "train/<class>/*.jpg with val/<class>/*.jpg",
    lambda filesystem, path: bool(list_folders(filesystem, path)),
    ImageFolder,
)
