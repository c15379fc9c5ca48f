"""List the image files of a folder, and read them as rows."""

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

import pyarrow as pa
import tenacity
from pyarrow import fs as pafs

from vlcp_ray.images import HAS_HEIF
from vlcp_ray.sources import local_files
from vlcp_ray.sources.local_files import OUTSIDE, Listed, leaves
from vlcp_ray.sources.reader import Listing, Row, is_hidden, tables
from vlcp_ray.store.files import read
from vlcp_ray.store.io import is_transient

#: Extensions of image files; other files (notes, lists, databases of thumbnails) are ignored.
SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf"}
    | ({".heic", ".heif"} if HAS_HEIF else set())
)
_THREADS: Final = 16  # each waits for a request of its own over a network
_BATCH: Final = 256
_BATCH_BYTES: Final = 2**27  # of files that are read over a network at the same time
_UNKNOWN_SIZE: Final = 2**20  # bytes that a file is taken for whose size a list does not say
#: errno of permanent errors of one file, besides the OSError subclasses in `_is_file_error`.
_FILE_ERRORS: Final = frozenset({errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG})
_WAIT: Final = tenacity.wait_chain(*map(tenacity.wait_fixed, (0.5, 2.0, 8.0)))  # seconds
_STOP: Final = tenacity.stop_after_attempt(4)


class ImageFile(NamedTuple):
    """An image file to read, with its size in bytes, the columns of its row, and why it is not read, else ""."""

    path: str
    size: int
    source: str
    image_id: str
    class_key: str
    split: str
    problem: str = ""


def listing(file: ImageFile) -> Listing:
    """Return a file as a layout lists it."""
    return Listing(file.split, file.class_key, file.source, file.image_id)


def read_files(filesystem: pafs.FileSystem, files: Iterable[ImageFile], max_bytes: int) -> Iterator[pa.Table]:
    """Read files as rows of RAW, in their order; a file that is too large or cannot be read is a row with a reason.

    Raises:
        OSError: the store fails, also after retries, or refuses all access.
    """
    read_row = partial(_read_row, filesystem, max_bytes)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield from tables(map(read_row, files))
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        remaining = iter(files)
        while batch := _next_batch(remaining):
            yield from tables(threads.map(read_row, batch))


def _next_batch(files: Iterator[ImageFile]) -> list[ImageFile]:
    batch, size = list[ImageFile](), 0
    for file in islice(files, _BATCH):
        batch.append(file)
        size += file.size or _UNKNOWN_SIZE
        if size >= _BATCH_BYTES:
            break
    return batch


def _read_row(filesystem: pafs.FileSystem, max_bytes: int, file: ImageFile) -> Row:
    content, reason, detail = b"", "", ""
    if file.problem:
        reason, detail = "unreadable", file.problem
    elif (file.size or 0) > max_bytes:
        reason, detail = "too_large", f"{file.size} bytes, the limit is {max_bytes}"
    else:
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient), wait=_WAIT, stop=_STOP, reraise=True
        )
        try:
            content = attempts(_read_bytes, filesystem, file.path, max_bytes)
        except OSError as error:
            # S3 gives rights to a bucket: a wrong key is not the fault of one image.
            is_refused = isinstance(error, PermissionError) and filesystem.type_name == "s3"
            if is_refused or not _is_file_error(error):
                raise
            reason, detail = "unreadable", f"{type(error).__name__}: {error.strerror or error}"
        if len(content) > max_bytes:
            content, reason, detail = b"", "too_large", f"more bytes than its size says, the limit is {max_bytes}"
    return Row(file.image_id, file.class_key, file.split, file.source, content, reason, detail)


def _read_bytes(filesystem: pafs.FileSystem, path: str, max_bytes: int) -> bytes:
    """Read a file, of more than `max_bytes` one byte more than that, whatever its size is said to be."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        return local_files.read(path, max_bytes)
    return read(filesystem, path, max_bytes)


def _is_file_error(error: OSError) -> bool:
    """Return whether an error is permanent and of one file, unlike a failed network or an expired token."""
    kinds = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, BlockingIOError)
    return isinstance(error, kinds) or error.errno in _FILE_ERRORS


def is_image(name: str) -> bool:
    """Return whether a file is an image by the extension of its name."""
    return local_files.suffix_of(name) in SUFFIXES


def list_images(
    filesystem: pafs.FileSystem, path: str, recursive: bool, limit: str, skipped: Counter[str] | None = None
) -> list[Listed]:
    """List a folder's image files by extension, sorted: broken links included, hidden files left out.

    Args:
        limit: the folder that links may not leave, of a local set; see `local_files.limit_of`.
        skipped: gets the number of other files by their suffix, "no suffix" if they have none.
    """
    skipped = Counter() if skipped is None else skipped
    if isinstance(filesystem, pafs.LocalFileSystem):
        if leaves(path, limit):
            return [Listed(path, 0, OUTSIDE)]
        return sorted(local_files.walk(path, SUFFIXES, limit, recursive, skipped))
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=recursive, allow_not_found=True))
    files = [info for info in infos if info.is_file and not is_hidden(info.path[len(path) + 1 :])]
    skipped.update(local_files.suffix_of(info.base_name) for info in files if not is_image(info.base_name))
    return sorted(Listed(info.path, info.size or 0) for info in files if is_image(info.base_name))
