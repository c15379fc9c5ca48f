"""List the image files of a folder, and read them as rows."""

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import pyarrow as pa
import tenacity
from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.reader import Row, is_hidden, tables
from vlcp_ray.store.io import is_transient

#: Extensions of image files; other files (notes, lists, databases of thumbnails) are ignored.
SUFFIXES: Final = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .pnm .jp2 .avif".split()  # noqa: SIM905
)
_THREADS: Final = 16  # each waits for a request of its own over a network
_BATCH: Final = 256
#: errno of permanent errors of one file, besides the OSError subclasses in `_is_file_error`.
_FILE_ERRORS: Final = frozenset({errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG})
_WAIT: Final = tenacity.wait_chain(*map(tenacity.wait_fixed, (0.5, 2.0, 8.0)))  # seconds
_STOP: Final = tenacity.stop_after_attempt(4)


class ImageFile(NamedTuple):
    """An image file to read, with its size in bytes and the columns of its row."""

    path: str
    size: int
    source: str
    image_id: str
    class_key: str
    split: str


def read_files(filesystem: pafs.FileSystem, files: Iterable[ImageFile], max_bytes: int) -> Iterator[pa.Table]:
    """Read files as rows of RAW, in their order; a file that is too large or cannot be read is a row with a reason.

    Raises:
        OSError: the store fails, also after retries, or refuses all access.
    """
    read = partial(_read_row, filesystem, max_bytes)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield from tables(map(read, files))
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        remaining = iter(files)
        while batch := list(islice(remaining, _BATCH)):
            yield from tables(threads.map(read, batch))


def _read_row(filesystem: pafs.FileSystem, max_bytes: int, file: ImageFile) -> Row:
    content, reason, detail = b"", "", ""
    if (file.size or 0) > max_bytes:
        reason, detail = "too_large", f"{file.size} bytes, the limit is {max_bytes}"
    else:
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient), wait=_WAIT, stop=_STOP, reraise=True
        )
        try:
            content = attempts(_read_bytes, filesystem, file.path)
        except OSError as error:
            if not _is_file_error(error):
                raise
            reason, detail = "unreadable", f"{type(error).__name__}: {error.strerror or error}"
    return Row(file.image_id, file.class_key, file.split, file.source, content, reason, detail)


def _read_bytes(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        content: bytes = stream.read()
        return content


def _is_file_error(error: OSError) -> bool:
    """Return whether an error is permanent and of one file, unlike a failed network or an expired token."""
    kinds = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    return isinstance(error, kinds) or error.errno in _FILE_ERRORS


def list_images(filesystem: pafs.FileSystem, path: str, recursive: bool) -> list[pafs.FileInfo]:
    """List a folder's image files by extension, sorted: broken links included, hidden files left out."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        infos = list(_walk(path, recursive))
    else:
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=recursive, allow_not_found=True))
    images = (info for info in infos if info.is_file and PurePosixPath(info.base_name).suffix.lower() in SUFFIXES)
    return sorted((i for i in images if not is_hidden(i.path[len(path) + 1 :])), key=lambda info: str(info.path))


def _walk(path: str, recursive: bool) -> Iterator[pafs.FileInfo]:
    """List the files of a local folder with its broken links, which pyarrow leaves out and which are rejected rows."""
    for folder, folders, names in os.walk(path):
        if not recursive:
            folders.clear()
        for name in names:
            file = f"{folder}/{name}"
            _check_name(file)
            yield pafs.FileInfo(file, pafs.FileType.File, size=_size(file))


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:  # reading the file raises it again, which makes it a rejected row
        return 0


def _check_name(file: str) -> None:
    try:
        file.encode()
    except UnicodeEncodeError as error:
        folder = os.path.dirname(file)
        raise ConfigError(
            f"ingest.source: {folder} has file names that are not UTF-8; rename them ({error})"
        ) from error
