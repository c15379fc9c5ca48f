"""The layout `tiny-imagenet`: the tree of Tiny-ImageNet's archive, with the classes of val images in a list."""

import posixpath
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Classes, load_glossary, resolve
from vlcp_ray.sources.image_files import ImageFile, list_images, listing, read_files
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.local_files import Listed, leaves, limit_of
from vlcp_ray.sources.locate import has_data
from vlcp_ray.sources.reader import Listing, Part, image_id, list_folders
from vlcp_ray.sources.val_lists import ANNOTATIONS, ValList

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest


class TinyImageNet:
    """Read `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` and `val/val_annotations.txt`."""

    layout = "tiny-imagenet"

    def __init__(self, filesystem: pafs.FileSystem, path: str, settings: "Ingest") -> None:
        """List the class folders, and no files.

        Raises:
            ConfigError: there are no class folders, or a wanted class has none.
        """
        self.filesystem, self.path, self.max_bytes = filesystem, path, settings.max_bytes
        self.glossary = load_glossary(settings.class_list)
        self.limit = limit_of(filesystem, path, settings.follow_links)
        self.val_list = ValList(f"{path}/val/{ANNOTATIONS}", ANNOTATIONS, self.limit)
        self.folders = [name for name, _ in list_folders(filesystem, f"{path}/train")]
        if outside := [name for name in self.folders if leaves(f"{path}/train/{name}/images", self.limit)]:
            raise ConfigError(
                f"ingest.source: the folder train/{outside[0]} is a link that leaves the image set; set "
                "ingest.follow_links if you know where it leads"
            )
        self.classes: Classes = resolve(map(self.glossary.canonical, self.folders), settings.classes, self.glossary)

    @property
    def description(self) -> str:
        return f"the tree of Tiny-ImageNet, {self.classes.summary(len(self.folders))}"

    @property
    def splits(self) -> frozenset[str]:
        return frozenset(("train", "val"))

    def parts(self) -> Sequence[Part]:
        keys = {name: self.glossary.canonical(name) for name in sorted(self.folders)}
        train = [Part(f"train/{name}", "train", key) for name, key in keys.items() if key in set(self.classes.keys)]
        return [*train, Part("val/images", "val")]

    def images(self, part: Part, skipped: Counter[str] | None = None, ids: bool = False) -> Iterator[Listing]:
        yield from map(listing, self._list(part, (), skipped))

    def read(self, part: Part, done: Container[str], skipped: Counter[str] | None = None) -> Iterator[pa.Table]:
        yield from read_files(self.filesystem, self._list(part, done, skipped), self.max_bytes)

    def _list(self, part: Part, done: Container[str], skipped: Counter[str] | None) -> Iterator[ImageFile]:
        folder = f"{self.path}/{part.path}{'/images' if part.class_key else ''}"
        labels = {} if part.class_key else self.val_list.read(self.filesystem)
        infos = list_images(self.filesystem, folder, False, self.limit, skipped)
        if labels and skipped is not None:
            wanted = set(self.classes.keys)
            named = {name for name, label in labels.items() if self.glossary.canonical(label) in wanted}
            skipped.update(self.val_list.missing(named, (info.base_name for info in infos), part.path))
        return self._files(part, infos, labels, done)

    def _files(
        self, part: Part, infos: Iterable[Listed], labels: Mapping[str, str], done: Container[str]
    ) -> Iterator[ImageFile]:
        in_train, wanted = set(map(self.glossary.canonical, self.folders)), set(self.classes.keys)
        for info in infos:
            label = labels.get(posixpath.splitext(info.base_name)[0], "")
            key = part.class_key or self.glossary.canonical(label)
            source = info.path[len(f"{self.path}/") :]
            if (key in wanted or key not in in_train) and source not in done:
                row_id = image_id(part.split, key, info.base_name)
                yield ImageFile(info.path, info.size, source, row_id, key, part.split, info.problem)


def is_tiny_imagenet(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether a folder is the tree of Tiny-ImageNet: val has annotations instead of class folders.

    The popular script that sorts val into class folders leaves the annotations and an empty val/images behind.
    """
    annotations, images = filesystem.get_file_info([f"{path}/val/{ANNOTATIONS}", f"{path}/val/images"])
    is_tree = annotations.is_file and images.type == pafs.FileType.Directory
    return bool(is_tree and has_data(filesystem, images.path))


LAYOUT: Final = Layout("tiny-imagenet", "Tiny-ImageNet's tree", is_tiny_imagenet, TinyImageNet)
