"""A filesystem that refuses at random, as a store does that is full or out of reach for a while."""

import errno
import random
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs

from vlcp_ray.store import Store


class Flaky(LocalFileSystem):
    """The local filesystem, of which a share of the calls fail: full when it writes, and when it reads as S3 says it.

    Ray Data's reader of parquet footers takes the words of S3 alone for something that passes.
    """

    cachable = False

    def __init__(self, share: float, **options: Any) -> None:
        super().__init__(**options)
        self.share = share

    def _maybe(self, code: int) -> None:
        if random.random() < self.share:
            said = "No space left on device" if code == errno.ENOSPC else "AWS Error SLOW_DOWN: reduce the rate"
            raise OSError(code, said)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._maybe(errno.EIO if "r" in mode else errno.ENOSPC)
        return super()._open(path, mode, **options)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        self._maybe(errno.ENOSPC)
        super().mv(path1, path2, **options)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._maybe(errno.ENOSPC)
        super().makedirs(path, exist_ok)


def store(root: Path, share: float) -> Store:
    """A store under `root` that refuses a share of all that is asked of it."""
    return Store(pafs.PyFileSystem(pafs.FSSpecHandler(Flaky(share))), str(root))
