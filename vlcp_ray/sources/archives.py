"""Tell the tars of WebDataset from archives of other files, which are refused with the command that unpacks them."""

import posixpath
import shlex
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import is_wnid
from vlcp_ray.sources.image_files import is_image
from vlcp_ray.sources.local_files import limit_of
from vlcp_ray.sources.reader import (
    has_extension,
    list_folder,
    list_folders,
    near_shards,
    split_of_folder,
    suffix_among,
)
from vlcp_ray.sources.samples import Sample, samples
from vlcp_ray.sources.shards import ShardError
from vlcp_ray.sources.tars import EXTENSIONS, open_tar

_UNPACK_TAR: Final = "mkdir -p {1} && tar -xf {0} -C {1}"
#: The commands that unpack archives, by the end of their name; those of a tar may also be WebDataset.
_ARCHIVES: Final = {
    ".zip": "unzip -q {0} -d {1}",
    ".7z": "7z x {0} -o{1}",
    ".rar": "unrar x {0} {1}/",
} | dict.fromkeys((".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst"), _UNPACK_TAR)
_TABLES: Final = ("parquet", "npz", "arrow")
_CHECKED: Final = 8  # folders of a folder, or tars of a set
_LISTED: Final = 64  # folders
_SEEN: Final = 1024  # first samples of a tar
_SEEN_BYTES: Final = 2**26  # of a tar, unpacked
_NAMED: Final = 8  # tars in a command


def refuse_archives(filesystem: pafs.FileSystem, path: str) -> None:
    """Refuse an archive that is no tar of WebDataset, or a folder of nothing else.

    Raises:
        ConfigError: the command that unpacks it.
    """
    info = filesystem.get_file_info(path)
    if info.is_file:
        names = [info.path]
    else:
        infos = list_folder(filesystem, path)
        if any(not info.is_file or is_data(info) or has_extension(info.base_name, EXTENSIONS) for info in infos):
            return
        names = sorted(info.path for info in infos)
    for name in names:
        if unpack := next((command for end, command in _ARCHIVES.items() if name.lower().endswith(end)), None):
            raise ConfigError(_refused_archive(filesystem, name, unpack))


def _refused_archive(filesystem: pafs.FileSystem, path: str, command: str) -> str:
    """Say how to unpack an archive by a command for {0}, to a folder {1}."""
    folder, name = posixpath.split(path)
    root = _root(filesystem, folder)
    target = posixpath.join(root, "unpacked")
    command = command.format(shlex.quote(posixpath.join(root, name)), shlex.quote(target))
    how = _unpack_and_set(filesystem, "it", command, target)
    return f"ingest.source: {path} is an archive, which is not read as it is; {how}"


def _root(filesystem: pafs.FileSystem, path: str) -> str:
    """Return the folder of the files in commands: of a store "", as they are downloaded to any folder."""
    return path if isinstance(filesystem, pafs.LocalFileSystem) else ""


def _unpack_and_set(filesystem: pafs.FileSystem, what: str, command: str, target: str) -> str:
    if isinstance(filesystem, pafs.LocalFileSystem):
        return f"unpack {what}: {command}, and set ingest.source = {target!r}"
    return f"download {what} and unpack {what}: {command}, upload the folder {target}, and set ingest.source to it"


def _download(filesystem: pafs.FileSystem) -> str:
    return "" if isinstance(filesystem, pafs.LocalFileSystem) else "download the folder, and in it "


def _upload(filesystem: pafs.FileSystem, what: str) -> str:
    if isinstance(filesystem, pafs.LocalFileSystem):
        return ""
    return f"; then upload {what}, and set ingest.source to where they are"


def is_data(info: pafs.FileInfo) -> bool:
    """Return whether a file is an image or a table."""
    return bool(info.is_file and (info.extension in _TABLES or is_image(info.base_name)))


def has_tars(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether a path is a tar or a folder of tars.

    Beside images and tables, tars are counted only if they are of WebDataset, and not what these were unpacked from.
    """
    info = filesystem.get_file_info(path)
    if info.is_file:
        return has_extension(info.base_name, EXTENSIONS)
    tars = sorted(near_shards(filesystem, path, EXTENSIONS))
    if not tars or not _holds_data(filesystem, path):
        return bool(tars)
    return any(_holds_samples(filesystem, tar, limit_of(filesystem, path, False)) for tar in _spread(tars))


def _spread(names: Sequence[str]) -> Sequence[str]:
    """Return some of the names, from the first to the last."""
    last = len(names) - 1
    return names if last < _CHECKED else [names[number * last // (_CHECKED - 1)] for number in range(_CHECKED)]


def _holds_samples(filesystem: pafs.FileSystem, path: str, limit: str) -> bool:
    try:
        return _first_file(filesystem, path, limit) is None
    except ShardError:
        return False


def _holds_data(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether there are images or tables in a folder or below it, in the first folders of each."""
    waiting = deque([path])
    for _ in range(_LISTED):
        if not waiting:
            return False
        folder = waiting.popleft()
        if any(map(is_data, list_folder(filesystem, folder))):
            return True
        waiting.extend(inner for _, inner in list_folders(filesystem, folder)[:_CHECKED])
    return False


def check_tars(filesystem: pafs.FileSystem, path: str, files: Mapping[str, str], limit: str) -> None:
    """Refuse tars if the first members of some are no samples, but files of a folder tree or other archives.

    Args:
        path: the folder of the tars.
        files: their relative paths, with their splits.
        limit: as of `open_shard`.

    Raises:
        ConfigError: the command that unpacks them.
    """
    example: Sample | None = None
    for name in _spread(list(files)):
        try:
            found = _first_file(filesystem, f"{path}/{name}", limit)
        except ShardError:  # a rejected row
            continue
        if found is None:
            return
        example = example or found
    if example is not None:
        hint = '; if samples with labels follow in them, set ingest.layout = "webdataset"'
        raise ConfigError(refusal(filesystem, path, files, example, hint))


def _first_file(filesystem: pafs.FileSystem, path: str, limit: str) -> Sample | None:
    """Return the first image of a tar that is an archive of single files, or its first file; None if it has samples.

    Raises:
        ShardError: it is damaged, or has no files, so that this cannot be told.
    """
    tar = open_tar(filesystem, path, limit)
    first: Sample | None = None
    for number, sample in enumerate(samples(tar), 1):
        if sample.is_labelled():
            return None
        if first is None or (sample.image() and not first.image()):
            first = sample
        if number == _SEEN or tar.end > _SEEN_BYTES:
            return first
    if first is None or tar.error_at_end():
        raise ShardError(tar.error_at_end() or "the tar has no files")
    return first


def refusal(filesystem: pafs.FileSystem, path: str, files: Mapping[str, str], sample: Sample, hint: str = "") -> str:
    """Say how to unpack tars that are no WebDataset; those of a store once they are downloaded.

    Args:
        path: the folder of the tars.
        files: their relative paths, with their splits.
        sample: the first file in them.
        hint: what else can be done where labels may follow in them.
    """
    name = next(iter(files))
    root = _root(filesystem, path)
    if any(extension in ("tar", "gz", "zip") for extension in sample.members):
        tar, folder = (shlex.quote(posixpath.join(root, inner)) for inner in (name, "train"))
        unpack = 'mkdir "${t%.tar}" && tar -xf "$t" -C "${t%.tar}" && rm "$t"'
        command = f"mkdir -p {folder} && tar -xf {tar} -C {folder} && for t in {folder}/*.tar; do {unpack}; done"
        return (
            f"ingest.source: {path}/{name} holds other archives ({_name_of(sample)}), as the original archive of "
            f"ImageNet; {_download(filesystem)}unpack them into a folder for each class: {command}"
            f"{_upload(filesystem, 'the folder train')}"
        )
    end = suffix_among(name, EXTENSIONS)
    if all(is_wnid(posixpath.basename(file).removesuffix(end)) for file in files):
        folder = shlex.quote(posixpath.dirname(posixpath.join(root, name)) or ".")
        unpack = f'mkdir "${{t%{end}}}" && tar -xf "$t" -C "${{t%{end}}}" && rm "$t"'
        command = f"cd {folder} && for t in *{end}; do {unpack}; done"
        return (
            f"ingest.source: each tar of {path} is a class; {_download(filesystem)}unpack them into a folder each: "
            f"{command}{_upload(filesystem, 'the folders')}"
        )
    if len(files) == 1:
        return _refused_archive(filesystem, f"{path}/{name}", _UNPACK_TAR) + hint
    target = posixpath.join(root, "unpacked")
    commands = " && ".join(_unpack_commands(root, files, target, sample.key))
    if len(files) > _NAMED:
        commands = f"{commands}; then the other {len(files) - _NAMED} in the same way"
    return (
        f"ingest.source: the tars of {path} are archives of files without labels ({_name_of(sample)}), which are not "
        f"read as they are; {_unpack_and_set(filesystem, 'them', commands, target)}{hint}"
    )


def _unpack_commands(root: str, files: Mapping[str, str], target: str, member: str) -> Sequence[str]:
    """Return a command for each of the first tars, whose paths are relative to `root`.

    Several tars go into one folder if the tree in them has splits, else into a folder for each split; those without
    folders into a folder each, which is that of a class.
    """
    commands = []
    top, slash, _ = member.removeprefix("./").partition("/")
    for name, split in islice(files.items(), _NAMED):
        folder = target
        if not (slash and split_of_folder(top)):
            folder = (
                f"{target}/{split if slash else posixpath.basename(name).removesuffix(suffix_among(name, EXTENSIONS))}"
            )
        quoted = shlex.quote(folder)
        commands.append(_UNPACK_TAR.format(shlex.quote(posixpath.join(root, name)), quoted))
    return commands


def _name_of(sample: Sample) -> str:
    return next(iter(sample.members.values())).name
