"""Open tars and parquet files so that an error of the store is never taken for a damaged file."""

import io
from contextlib import suppress
from typing import Any, Final

from pyarrow import fs as pafs

from vlcp_ray.sources.local_files import problem_of
from vlcp_ray.store.io import StoreError, retry

_LOCAL_WINDOW: Final = 2**16  # bytes; more is read ahead over a network, where each request costs a round trip
_REMOTE_WINDOW: Final = 8 * 2**20


class ShardFile(io.RawIOBase):
    """A file that is read by position; a read that fails is tried again for half a minute.

    tarfile and pyarrow raise the same errors for a damaged file and for a failed read. Here the latter is always a
    `StoreError`, so that every other error means that the bytes are damaged.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        """Open a file.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: it cannot be opened, also after retries.
        """
        self.filesystem, self.path = filesystem, path
        self.window = _LOCAL_WINDOW if isinstance(filesystem, pafs.LocalFileSystem) else _REMOTE_WINDOW
        self._file: Any = None
        self._position, self._start, self._ahead = 0, 0, b""
        self.error: StoreError | None = None  # Arrow may raise another one in its place
        self.size = int(retry(self._size, f"open {path}"))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self.path}: position {start + offset} is before the start of the file")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the file, however large `size` is."""
        left = max(self.size - self._position, 0)
        content = self._read_at(self._position, left if size is None or size < 0 else min(size, left))
        self._position += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._ahead = b""
        super().close()

    def damage(self, error: BaseException) -> "StoreError | ShardError":
        """Return what an error of a library that reads this file means: the store failed, or its bytes are damaged."""
        return self.error or ShardError(" ".join(str(error).split()))

    def _read_at(self, position: int, size: int) -> bytes:
        if size <= 0:
            return b""
        if size > self.window:
            return self._request(position, size)
        if not self._start <= position <= position + size <= self._start + len(self._ahead):
            self._start, self._ahead = position, self._request(position, min(self.window, self.size - position))
        return self._ahead[position - self._start : position - self._start + size]

    def _request(self, position: int, size: int) -> bytes:
        try:
            return retry(lambda: self._read_once(position, size), f"read {self.path}")
        except FileNotFoundError as error:
            raise ShardError(f"there is no such file any more: {error}") from error
        except StoreError as error:
            self.error = error
            raise

    def _size(self) -> int:
        if self._file is None:
            self._file = self.filesystem.open_input_file(self.path)
        return int(self._file.size())

    def _read_once(self, position: int, size: int) -> bytes:
        try:
            self._size()
            return bytes(self._file.read_at(size, position))
        except Exception as error:
            file, self._file = self._file, None  # opened again by the next attempt
            if file is not None:
                with suppress(Exception):  # the first error is reported
                    file.close()
            if isinstance(error, OSError):
                raise
            raise OSError(f"{type(error).__name__}: {error}") from error  # drivers of fsspec have errors of their own


def open_shard(filesystem: pafs.FileSystem, path: str, limit: str) -> ShardFile:
    """Open a file of an image set.

    Args:
        limit: the folder that links may not leave, of a local set; see `local_files.limit_of`.

    Raises:
        ShardError: this file cannot be opened, though the store can be reached.
        StoreError: the store fails.
    """
    if isinstance(filesystem, pafs.LocalFileSystem) and (problem := problem_of(path, limit)):
        raise ShardError(f"it is {problem}")
    try:
        return ShardFile(filesystem, path)
    except FileNotFoundError as error:
        raise ShardError(f"there is no such file any more: {error}") from error
    except StoreError as error:
        if isinstance(error.__cause__, PermissionError | IsADirectoryError | NotADirectoryError):
            raise ShardError(f"it cannot be opened: {error.__cause__}") from error
        raise


class ShardError(Exception):
    """A file of an image set that is damaged, or that cannot be opened; the others can be read."""
