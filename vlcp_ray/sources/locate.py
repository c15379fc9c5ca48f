"""Find the folder of an image set in the folder that a user gives, which often is one or two folders too high."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.archives import has_tars, is_data
from vlcp_ray.sources.local_files import leaves
from vlcp_ray.sources.reader import has_shards, list_folder, list_folders, list_shards, list_some, split_of_folder
from vlcp_ray.sources.tars import EXTENSIONS

_MAX_DEPTH: Final = 4  # ILSVRC/Data/CLS-LOC/train
_CHECKED: Final = 8  # folders of a folder: those of a thousand classes are all alike
_MAX_LISTED: Final = 64


def locate(filesystem: pafs.FileSystem, path: str, limit: str) -> str:
    """Return the folder of an image set: `path`, or a folder below it if each on the way holds nothing else to read.

    Args:
        limit: the folder that links may not leave, of a local set.

    Raises:
        ConfigError: the folder is no image set, but folders below it are; the message names them.
    """
    if filesystem.get_file_info(path).is_file:
        return path
    for _ in range(_MAX_DEPTH):
        folders = list_folders(filesystem, path)
        if len(folders) != 1 or split_of_folder(folders[0][0]) or leaves(folders[0][1], limit):
            break
        if not _is_wrapper(filesystem, path, folders[0][1]):
            break
        path = folders[0][1]
    if has_train(filesystem, folders := list_folders(filesystem, path)):
        return path
    if inner := list(_inner_sets(filesystem, [folder for _, folder in folders])):
        which = "one of them" if inner[1:] else "that folder"
        raise ConfigError(
            f"ingest.source: {path} is no image set, but it holds {list_some(inner)}; give {which}, or set "
            'ingest.layout = "folder" if its folders are the classes'
        )
    return path


def has_train(filesystem: pafs.FileSystem, folders: Sequence[tuple[str, str]]) -> bool:
    """Return whether one of the folders (name, path) of a folder is the split train.

    A folder called train that has images and no folders, beside others that are no splits, is a class.
    """
    train = [path for name, path in folders if split_of_folder(name) == "train"]
    if all(split_of_folder(name) for name, _ in folders):
        return bool(train)
    return any(list_folders(filesystem, path) for path in train)


def _is_wrapper(filesystem: pafs.FileSystem, path: str, inner: str) -> bool:
    """Return whether a folder holds nothing but another one, which has folders. Without, that is a class.

    What the folder was unpacked from may lie beside it.
    """
    is_alone = not has_images(filesystem, path) and not has_tars(filesystem, path)
    return is_alone and bool(list_folders(filesystem, inner))


def has_data(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether there are images, tables or tars in a folder itself."""
    return has_images(filesystem, path) or bool(list_shards(filesystem, path, EXTENSIONS))


def has_images(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether there are images or tables in a folder itself."""
    return any(map(is_data, list_folder(filesystem, path)))


def _inner_sets(filesystem: pafs.FileSystem, folders: list[str]) -> Iterator[str]:
    """Find the folders with a folder `train` of images or tars, at most three folders down; the first folders only."""
    waiting = deque((folder, 1) for folder in folders[:_CHECKED])
    for _ in range(_MAX_LISTED):
        if not waiting:
            return
        folder, depth = waiting.popleft()
        inner = list_folders(filesystem, folder)
        if has_train(filesystem, inner):
            train = next(path for name, path in inner if split_of_folder(name) == "train")
            if holds_images(filesystem, train) or has_shards(filesystem, train, EXTENSIONS):
                yield folder
        elif depth < _MAX_DEPTH - 1:
            waiting.extend((path, depth + 1) for _, path in inner[:_CHECKED])


def holds_images(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether a folder, its first folder or the first in that one has images or tables."""
    for _ in range(3):
        if has_images(filesystem, path):
            return True
        folders = list_folders(filesystem, path)
        if not folders:
            return False
        path = folders[0][1]
    return False
