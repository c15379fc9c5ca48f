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

from vlcp_ray.settings import ConfigError
from vlcp_ray.store.uris import public, remember, strip_secrets

T = TypeVar("T")

#: Half a second, then twice as long each time, up to 15 s: seven attempts in 30 s.
WAIT: Final = tenacity.wait_exponential(multiplier=0.5, max=15)
STOP: Final = tenacity.stop_after_delay(30)

#: Numbers of permanent errors, besides those with a class of their own in Python.
_PERMANENT: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.ELOOP}
)
_RIGHTS: Final = "the credentials lack a permission: they need to list, read, write and delete there"
#: Words of permanent errors of S3, as obstore and as pyarrow print them, and what the user can do.
_FIXES: Final = (
    (("QuotaExceeded",), ""),  # the store is full, which may change, though the status is that of a refusal
    (
        ("RequestTimeTooSkewed", "REQUEST_TIME_TOO_SKEWED"),
        "the clocks of this machine and of the store differ: set the clock of this machine",
    ),
    (
        ("InvalidObjectState", "object's storage class"),
        "the object is in an archive: restore it, or copy it to another storage class",
    ),
    (
        ("AllAccessDisabled", "AccountProblem", "NotSignedUp"),
        "the account or the bucket is disabled: ask the provider of the store",
    ),
    (("NoSuchBucket", "NO_SUCH_BUCKET", "InvalidBucketName"), "there is no such bucket: check its name or create it"),
    (
        ("InvalidAccessKeyId", "INVALID_ACCESS_KEY_ID", "InvalidClientTokenId"),
        "the store does not know this access key: check AWS_ACCESS_KEY_ID, AWS_PROFILE or the credentials in the URI",
    ),
    (
        ("SignatureDoesNotMatch", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE"),
        "the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY or the credentials in the URI",
    ),
    (
        ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "HTTP status 400", "400 Bad Request"),
        "the session token has expired or is not valid: renew the credentials (AWS_SESSION_TOKEN)",
    ),
    (
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "configured region", "HTTP status 301"),
        "the bucket is in another region: set AWS_REGION or add ?region=NAME to the URI",
    ),
    (
        ("/latest/api/token", "/latest/meta-data", "169.254.170.2", "MissingSecurityHeader", "NoCredential"),
        "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    ),
    (("AccessDenied", "ACCESS_DENIED", "HTTP status 401", "HTTP status 403", "403 Forbidden"), _RIGHTS),
)
#: Of errors of the operating system. A refusal of a store has no number.
_ERRNO_FIXES: Final = {
    errno.EROFS: "the folder is read-only: name one that can be written",
    errno.EACCES: "the permission is missing: change the rights of the folder or name another",
    errno.EPERM: "the permission is missing: change the rights of the folder or name another",
}
_WHOLE_BYTES: Final = 16 * 2**20  # larger files are hashed by their size and this many bytes at both ends


class StoreError(ValueError):
    """A call of the store failed; the message has the reason and the fix."""


class AccessError(StoreError, ConfigError):
    """The store refuses access, and waiting would not help: the bucket, a key, a token, the region or a right."""


def open_uri(uri: str, field: str) -> tuple[pafs.FileSystem, str]:
    """Open the filesystem of a folder, a file or a URI that pyarrow or fsspec supports; nothing is read.

    Args:
        field: the setting with the URI, for the error.

    Returns the filesystem and the path in it.

    Raises:
        ValueError: the scheme or an option of the URI is unknown, its driver is not installed, the URI names no bucket,
            or the region of the bucket cannot be found.
    """
    if not uri.strip():
        raise ValueError(f"{field}: it is empty; give a folder or a URI such as s3://bucket/folder")
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    remember(uri)
    try:
        filesystem, path = _from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError, ValueError, OSError) as error:
        raise ValueError(
            f"{field} {public(uri)}: {public(str(error))}; give a folder or a URI such as s3://bucket/folder"
        ) from error
    if not path.strip("/") and not isinstance(filesystem, pafs.LocalFileSystem):
        raise ValueError(f"{field} {public(uri)}: it names no bucket; write s3://bucket/folder")
    if filesystem.type_name == "s3" and {"", ".", ".."} & set(path.strip("/").split("/")):
        raise ValueError(f"{field} {public(uri)}: a part of the path is empty or dots; write s3://bucket/folder")
    return filesystem, path.rstrip("/")


def _from_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
        filesystem, path = pafs.FileSystem.from_uri(f"fsspec+{uri}")
    return filesystem, path


def is_transient(error: BaseException) -> bool:
    """Return whether a store's call that failed with this error may succeed later (full, busy or out of reach)."""
    if not isinstance(error, OSError) or isinstance(
        error, FileNotFoundError | FileExistsError | PermissionError | NotADirectoryError
    ):
        return False
    return error.errno not in _PERMANENT and not _fix(error) and not _is_folder(error)


def _is_folder(error: OSError) -> bool:
    return isinstance(error, IsADirectoryError) or "is a directory" in str(error)


def _fix(error: OSError) -> str:
    """Return what a user can do about a permanent error; "" for other errors."""
    text = str(error)
    fixes = (fix for words, fix in _FIXES if any(word in text for word in words))
    is_refusal = isinstance(error, PermissionError) and error.errno is None
    return next(fixes, _RIGHTS if is_refusal else _ERRNO_FIXES.get(error.errno or 0, ""))


def retry(call: Callable[[], T], description: str) -> T:
    """Call a function, and retry for half a minute while it fails with transient errors.

    Args:
        call: called once for each attempt.
        description: of the call, for the error: `write /runs/file`.

    Raises:
        FileNotFoundError: raised unchanged at once, for callers that handle it.
        AccessError: a permanent error of access, at once.
        StoreError: another permanent error, at once, or a transient one of the last attempt.
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
        if _is_folder(error):
            raise StoreError(f"cannot {description}: it is a folder, not a file; name a file") from error
        if fix := _fix(error):
            raise AccessError(f"cannot {description}: {error}; {fix}, then re-run the same command") from error
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
