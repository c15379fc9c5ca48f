"""A filesystem whose calls fail at random, like those of a store that is full or busy at times."""

import errno
import random
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs

from vlcp_ray.store.artifact import Store


class Flaky(LocalFileSystem):
    """The local filesystem, with a share of calls that fail: disk full on writes, SLOW_DOWN of S3 on reads.

    Ray Data's reader of parquet footers retries only on the words of S3.
    """

    cachable = False

    def __init__(self, share: float, **options: Any) -> None:
        super().__init__(**options)
        self.share = share

    def _fail_sometimes(self, code: int) -> None:
        if random.random() < self.share:
            message = "No space left on device" if code == errno.ENOSPC else "AWS Error SLOW_DOWN: reduce the rate"
            raise OSError(code, message)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._fail_sometimes(errno.EIO if "r" in mode else errno.ENOSPC)
        return super()._open(path, mode, **options)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        self._fail_sometimes(errno.ENOSPC)
        super().mv(path1, path2, **options)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._fail_sometimes(errno.ENOSPC)
        super().makedirs(path, exist_ok)


def store(root: Path, share: float) -> Store:
    """A store under `root`, with a share of calls that fail."""
    return Store(pafs.PyFileSystem(pafs.FSSpecHandler(Flaky(share))), str(root))
