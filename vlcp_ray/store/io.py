"""Open folders and URIs as filesystems, retry the calls of a store, and hash the contents of files."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa
import tenacity
from pyarrow import fs as pafs

from vlcp_ray.store.uris import public, remember, strip_secrets

T = TypeVar("T")

#: Half a second, then twice as long each time, up to 15 s: seven attempts in 30 s.
WAIT: Final = tenacity.wait_exponential(multiplier=0.5, max=15)
STOP: Final = tenacity.stop_after_delay(30)

#: Numbers of permanent errors, besides those with a class of their own in Python.
_PERMANENT: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.ELOOP}
)
#: Words of permanent errors that pyarrow raises without a number: those of S3, and a folder opened as a file.
_PERMANENT_WORDS: Final = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_SIGNATURE",
    "ExpiredToken",
    "HTTP status 400",  # an expired token, where the answer has no body
    "HTTP status 401",
    "is a directory",
)
_WHOLE_BYTES: Final = 16 * 2**20  # larger files are hashed by their size and this many bytes at both ends


class StoreError(ValueError):
    """A call of the store failed; the message has the reason and the fix."""


def open_uri(uri: str, field: str) -> tuple[pafs.FileSystem, str]:
    """Open the filesystem of a folder, a file or a URI that pyarrow or fsspec supports; nothing is read.

    Args:
        field: the setting with the URI, for the error.

    Returns the filesystem and the path in it.

    Raises:
        ValueError: the scheme of the URI is unknown, its driver is not installed, or the URI names no bucket.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    remember(uri)
    try:
        filesystem, path = _from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError, ValueError) as error:
        raise ValueError(
            f"{field} {public(uri)}: {public(str(error))}; give a folder or a URI such as s3://bucket/folder"
        ) from error
    if not path.strip("/") and not isinstance(filesystem, pafs.LocalFileSystem):
        raise ValueError(f"{field} {public(uri)}: it names no bucket; write s3://bucket/folder")
    return filesystem, path.rstrip("/")


def _from_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        filesystem, path = pafs.FileSystem.from_uri(f"fsspec+{uri}")
    return filesystem, path


def is_transient(error: BaseException) -> bool:
    """Return whether a store's call that failed with this error may succeed later (full, busy or out of reach)."""
    if not isinstance(error, OSError) or isinstance(
        error, FileNotFoundError | FileExistsError | PermissionError | NotADirectoryError | IsADirectoryError
    ):
        return False
    return error.errno not in _PERMANENT and not any(word in str(error) for word in _PERMANENT_WORDS)


def retry(call: Callable[[], T], description: str) -> T:
    """Call a function, and retry for half a minute while it fails with transient errors.

    Args:
        call: called once for each attempt.
        description: of the call, for the error: `write /runs/file`.

    Raises:
        FileNotFoundError: raised unchanged at once, for callers that handle it.
        StoreError: a permanent error, at once, or a transient one of the last attempt.
    """
    attempts = tenacity.Retrying(retry=tenacity.retry_if_exception(is_transient), wait=WAIT, stop=STOP, reraise=True)
    try:
        return attempts(call)
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise StoreError(
            f"cannot {description}: a part of the path is a file, not a folder; name another folder"
        ) from error
    except OSError as error:
        tries = attempts.statistics["attempt_number"]
        seconds = attempts.statistics["delay_since_first_attempt"]
        failures = "" if tries == 1 else f"failed {tries} times in {seconds:.0f} s: "
        raise StoreError(
            f"cannot {description}: {failures}{public(str(error))}. Free space or restore access, then re-run the same "
            "command to resume"
        ) from error


def content_hash(name: str) -> str:
    """Hash the contents of a local file or folder, whatever its path; return a hub id, or a URI without its secrets."""
    path = Path(name).expanduser()
    if not path.exists():
        return strip_secrets(name)
    digest = hashlib.blake2b(digest_size=16)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
    for file in files:
        digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_WHOLE_BYTES))
            if file.stat().st_size > _WHOLE_BYTES:
                stream.seek(-_WHOLE_BYTES, 2)
                digest.update(stream.read())
    return digest.hexdigest()
