"""Size and SHA-256 of the files that this process has written, and those of the workers that have reported to it.

The manifest of an artifact lists them, so that no file is read again for it. Workers return them with their results
(see `engine.tasks`); only the files of an earlier, interrupted run have to be read.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple


class Written(NamedTuple):
    """The size in bytes and the SHA-256, in hexadecimal digits, of a file as it was written."""

    bytes: int
    sha256: str


_written: dict[str, Written] = {}  # by path


def measure(blocks: Iterable[bytes | memoryview]) -> Written:
    """Compute the size and the hash of the blocks of a file."""
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
    return Written(size, digest.hexdigest())


def record(path: str, written: Written) -> None:
    """Record a file that this process has written."""
    _written[path] = written


def dump() -> str:
    """Return the records of this process as JSON, and forget them."""
    taken = dict(_written)
    _written.clear()
    return json.dumps(taken)


def load(records: str) -> None:
    """Record the files that a worker has written, as its `dump` returned them."""
    _written.update({path: Written(*values) for path, values in json.loads(records).items()})


def find(path: str) -> Written | None:
    """Return the record of a file, or None."""
    return _written.get(path)
