"""List and read the files of local folders: only regular files are opened, and links may not leave the image set."""

import os
import posixpath
import stat
from collections.abc import Collection, Iterator, MutableMapping
from typing import Final, NamedTuple

from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError

#: What is said of a link that leaves the image set.
OUTSIDE: Final = "a link that leaves the image set, which ingest.follow_links would read"
#: How files without a suffix are counted.
NO_SUFFIX: Final = "no suffix"
_PIECE: Final = 2**20  # bytes
_KINDS: Final = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class Listed(NamedTuple):
    """A file of an image set: its path, its size in bytes, and why it is not read, else ""."""

    path: str
    size: int
    problem: str = ""

    @property
    def base_name(self) -> str:
        return self.path.rpartition("/")[2]


def limit_of(filesystem: pafs.FileSystem, path: str, follow_links: bool) -> str:
    """Return the folder that links may not leave, or "" for no limit: another store, or one file that the user named.

    The folder of the set may itself be a link. In the cache of the Hugging Face hub the files of a commit are links to
    the folder `blobs` of the same set.
    """
    if follow_links or not isinstance(filesystem, pafs.LocalFileSystem) or not os.path.isdir(path):
        return ""
    real = os.path.realpath(path)
    cached, mark, _ = real.partition("/snapshots/")
    return cached if mark and os.path.isdir(f"{cached}/blobs") else real


def leaves(path: str, limit: str) -> bool:
    """Return whether links on the way lead a path out of a folder."""
    return limit != "" and not f"{os.path.realpath(path)}/".startswith(f"{limit.rstrip('/')}/")


def problem_of(path: str, limit: str) -> str:
    """Return why a file is not opened, or ""; where there is none, opening it gives the error."""
    return _listed(path, OUTSIDE if leaves(path, limit) else "").problem


def _listed(path: str, problem: str) -> Listed:
    """Return the size of a file, and what is wrong with it: that it is no regular file, or the given problem."""
    try:
        status = os.stat(path)
    except OSError:  # reading the file raises it again, which makes it a rejected row
        return Listed(path, 0, problem)
    kind = _kind(status.st_mode)
    return Listed(path, status.st_size, problem if problem and stat.S_ISDIR(status.st_mode) else kind or problem)


def _kind(mode: int) -> str:
    """Return what a file is that is no regular one, or ""."""
    return "" if stat.S_ISREG(mode) else f"{_KINDS.get(stat.S_IFMT(mode), 'something')}, not a regular file"


def suffix_of(name: str) -> str:
    """Return the suffix of a file name as it is counted: ".heic", or "no suffix"."""
    suffix = posixpath.splitext(name)[1].lower()  # a fifth of the time of PurePosixPath(name).suffix
    return suffix if len(suffix) > 1 else NO_SUFFIX


def walk(
    folder: str,
    suffixes: Collection[str],
    limit: str,
    recursive: bool = True,
    skipped: MutableMapping[str, int] | None = None,
) -> Iterator[Listed]:
    """List the files with some suffixes in a folder, besides hidden ones; every real folder is listed once.

    Links to folders of the set are followed, after the folders themselves, so that loops end. Broken links, devices and
    links that leave the set are listed with the reason, as are folders with such a suffix.

    Args:
        limit: the folder that links may not leave.
        skipped: gets the number of files with other suffixes, by suffix.
    """
    folders, links, seen = [folder], list[str](), {os.path.realpath(folder)}
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            yield Listed(current, 0, f"a folder that cannot be listed: {error.strerror}")
            continue
        for entry in entries:
            path = f"{current}/{entry.name}"
            if entry.name.startswith("."):
                continue
            _check_name(path)
            is_link = entry.is_symlink()
            is_folder = os.path.isdir(path) if is_link else entry.is_dir()
            problem = _link_problem(path, limit, is_folder) if is_link else ""
            if is_folder and recursive and not problem and (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                (links if is_link else folders).append(path)
            suffix = suffix_of(entry.name)
            if suffix in suffixes or (problem and is_folder):
                yield _listed(path, problem)
            elif skipped is not None and not is_folder:
                skipped[suffix] = skipped.get(suffix, 0) + 1


def _link_problem(path: str, limit: str, is_folder: bool) -> str:
    if leaves(path, limit):
        return OUTSIDE
    real = os.path.realpath(path)
    if is_folder and f"{os.path.realpath(os.path.dirname(path))}/".startswith(f"{real}/"):
        return "a link to a folder that it lies in"
    return ""


def read(path: str, most: int) -> bytes:
    """Read a regular file; of one that has more bytes than `most`, whatever its size said, one byte more than that.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    # O_NONBLOCK: opening a fifo would wait for a writer
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if kind := _kind(os.fstat(number).st_mode):
            raise IsADirectoryError(kind)
        pieces, left = list[bytes](), most + 1
        while left > 0 and (piece := os.read(number, min(left, _PIECE))):
            pieces.append(piece)
            left -= len(piece)
    finally:
        os.close(number)
    return b"".join(pieces)


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"ingest.source: {os.path.dirname(path)} has file names that are not UTF-8; rename them ({error})"
        ) from error
