"""Read, write, list and delete whole files, on local disks, on S3 and on every store that pyarrow or fsspec opens.

A file appears under its name only when it is whole. On S3 each function is one request (a write of more than 8 MiB is
one for each part), through obstore. pyarrow needs three for a small object, asks for an object's size before it reads
it, writes an object for each parent folder, and publishes half an object where an exception ends a write.

All functions raise OSError, and none retries for long: see `store.io.retry`.
"""

import errno
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from obstore import exceptions
from obstore.store import S3Store
from pyarrow import fs as pafs

from vlcp_ray.store.aws import profile_keys

Content = bytes | memoryview | Path
#: Other stores in which an object appears only when its upload ends; elsewhere a file is renamed to its name.
_OTHER_OBJECT_STORES: Final = ("gcs", "abfs")
_PART: Final = 8 * 2**20  # bytes of a part of an upload, and of a copy between files
_RANGE: Final = 64 * 2**20  # bytes of a request of a download
#: Of a request; `store.io.retry` repeats what still fails.
_RETRIES: Final[Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}
_TIMEOUT: Final = 60.0  # seconds of a request, in which a part of an upload is sent
_CLIENT: Final = {"connect_timeout": "4s"}
_timeout: ContextVar[float] = ContextVar("timeout", default=_TIMEOUT)
#: Keys that obstore refuses, of image sets of others: control characters, and parts that are empty or dots.
_UNUSUAL: Final = re.compile(r"[\x00-\x1f\x7f]|(^|/)\.{0,2}(/|$)")
#: The options of a pyarrow filesystem that obstore needs, too.
_ENDPOINT: Final = ("scheme", "endpoint_override", "force_virtual_addressing")
_CREDENTIALS: Final = ("access_key", "secret_key", "session_token", "anonymous")
_CODE: Final = re.compile(r"<Code>(.*?)</Code>")
_MESSAGE: Final = re.compile(r"<Message>(.*?)</Message>")
#: The status of a refusal; obstore has a class for it, which its lists do not raise.
_REFUSED: Final = re.compile(r"status code: 40[13]\b")
#: Answers with the status of a refusal that mean something else: the store is full, or one object is in an archive.
_OTHER_REFUSALS: Final = {"QuotaExceeded": errno.EDQUOT, "InvalidObjectState": errno.EINVAL}
_NOT_IMPLEMENTED: Final = re.compile(r"<Code>NotImplemented</Code>|501 Not Implemented")
#: Numbers of the error of a local filesystem without hard links.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


class File(NamedTuple):
    """A file of a store and its size in bytes."""

    path: str
    size: int

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class DatedFile(NamedTuple):
    """A file of a store, its size in bytes, and when it was written, in seconds since 1970."""

    path: str
    size: int
    modified: float


def read(filesystem: pafs.FileSystem, path: str, limit: int | None = None) -> bytes:
    """Read a file.

    Args:
        limit: bytes to read at most; of a larger file a little more than that may be returned.

    Raises:
        FileNotFoundError: there is none.
    """
    if isinstance(filesystem, pafs.S3FileSystem) and not _UNUSUAL.search(path):
        store, key = _s3(filesystem, path)
        with _as_os_error():
            result = store.get(key)
            if limit is None or result.meta["size"] <= limit:
                return bytes(result.bytes())
            return bytes(next(iter(result.stream(min_chunk_size=limit + 1))))
    with filesystem.open_input_stream(path) as stream:
        pieces = [stream.read() if limit is None else stream.read(limit + 1)]
        while limit is not None and pieces[-1] and sum(map(len, pieces)) <= limit:
            pieces.append(stream.read(limit + 1))
        return b"".join(pieces)


def read_range(filesystem: pafs.FileSystem, path: str, start: int, size: int) -> bytes:
    """Read `size` bytes of a file from byte `start` on; fewer where the file ends before."""
    if isinstance(filesystem, pafs.S3FileSystem) and not _UNUSUAL.search(path):
        store, key = _s3(filesystem, path)
        with _as_os_error():
            return bytes(store.get_range(key, start=start, length=size))
    with filesystem.open_input_file(path) as source:
        content: bytes = source.read_at(size, start)
        return content


def check_access(filesystem: pafs.FileSystem, path: str) -> None:
    """List a first object of S3, because the answer of a list names what is wrong, and that of HEAD does not."""
    if isinstance(filesystem, pafs.S3FileSystem):
        store, key = _s3(filesystem, path)
        with _as_os_error():
            next(iter(store.list(key, chunk_size=1)), None)


def write(filesystem: pafs.FileSystem, path: str, content: Content) -> None:
    """Write a file, or the content of a local file; it appears whole or not at all."""
    if isinstance(filesystem, pafs.S3FileSystem):
        store, key = _s3(filesystem, path)
        with _as_os_error():
            # Arrow's buffers have the format of signed bytes, which obstore takes for a sequence of numbers.
            data = content.cast("B") if isinstance(content, memoryview) else content
            store.put(key, data, chunk_size=_PART)
    elif filesystem.type_name in _OTHER_OBJECT_STORES:
        # In a thread, because Ctrl-C would interrupt the main thread between two calls, and then half is published.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_upload, filesystem, path, content).result()
    else:
        _write_and_rename(filesystem, path, content)


def create(filesystem: pafs.FileSystem, path: str, content: bytes) -> bool:
    """Write a file that does not exist, on S3 and on local disks; return whether it was written.

    Of several callers one succeeds. On servers of S3 that have no such operation, and on other stores, where it is not
    used, the file is written.
    """
    if isinstance(filesystem, pafs.S3FileSystem):
        store, key = _s3(filesystem, path)
        with _as_os_error():
            try:
                store.put(key, content, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                return False
            except exceptions.GenericError as error:
                if not _NOT_IMPLEMENTED.search(str(error)):
                    raise
                write(filesystem, path, content)
        return True
    if not isinstance(filesystem, pafs.LocalFileSystem):
        write(filesystem, path, content)
        return True
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    hidden = temporary(path)
    Path(hidden).write_bytes(content)
    try:
        _link(hidden, path, content)
    except FileExistsError:
        return False
    finally:
        os.unlink(hidden)
    return True


def _link(written: str, path: str, content: bytes) -> None:
    """Give a local file a second name; without hard links write its content under that name, not in one step."""
    try:
        os.link(written, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(path, "xb") as file:
            file.write(content)


def list_files(filesystem: pafs.FileSystem, folder: str, *, recursive: bool = False) -> list[File]:
    """List the files of a folder, sorted by path, without hidden ones; none where the folder does not exist."""
    return [File(file.path, file.size) for file in list_dated(filesystem, folder, recursive=recursive)]


def list_dated(filesystem: pafs.FileSystem, folder: str, *, recursive: bool = False) -> list[DatedFile]:
    """List the files of a folder as `list_files` does, with the times at which they were written."""
    if isinstance(filesystem, pafs.S3FileSystem):
        store, key = _s3(filesystem, folder)
        bucket = folder.partition("/")[0]
        with _as_os_error():
            if recursive:
                objects = [entry for page in store.list(key, chunk_size=1000) for entry in page]
            else:
                objects = list(store.list_with_delimiter(key)["objects"])
        # Other tools write empty objects as marks of folders: the key of the folder itself, or one that ends in "/".
        keys = [entry for entry in objects if entry["path"] != key and not entry["path"].endswith("/")]
        files = [
            DatedFile(f"{bucket}/{entry['path']}", entry["size"], entry["last_modified"].timestamp()) for entry in keys
        ]
    else:
        infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=recursive, allow_not_found=True))
        files = [
            DatedFile(str(info.path), int(info.size or 0), (info.mtime_ns or 0) / 1e9) for info in infos if info.is_file
        ]
    hidden = len(folder) + 1
    return sorted(file for file in files if not any(part[:1] == "." for part in file.path[hidden:].split("/")))


def list_folders(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """List the names of the folders in a folder, sorted."""
    if isinstance(filesystem, pafs.S3FileSystem):
        store, key = _s3(filesystem, folder)
        with _as_os_error():
            prefixes = store.list_with_delimiter(key)["common_prefixes"]
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes)
    infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def delete(filesystem: pafs.FileSystem, paths: Sequence[str]) -> None:
    """Delete files; those that do not exist are left out."""
    if isinstance(filesystem, pafs.S3FileSystem) and paths:
        store, _ = _s3(filesystem, paths[0])
        with _as_os_error():
            store.delete([path.partition("/")[2] for path in paths])
        return
    for path in paths:
        with suppress(FileNotFoundError):
            filesystem.delete_file(path)


def stream(filesystem: pafs.FileSystem, file: File) -> Iterator[bytes | memoryview]:
    """Read a file of any size in blocks."""
    if not isinstance(filesystem, pafs.S3FileSystem):
        with filesystem.open_input_stream(file.path) as source:
            while block := source.read(_PART):
                yield block
        return
    store, key = _s3(filesystem, file.path)
    for start in range(0, file.size, _RANGE):
        with _as_os_error():
            part = store.get_range(key, start=start, end=min(start + _RANGE, file.size))
        yield memoryview(part)


def local_blocks(content: Content) -> Iterator[bytes | memoryview]:
    """Return bytes as one block, or read a local file in blocks."""
    if not isinstance(content, Path):
        yield content
        return
    with content.open("rb") as source:
        while block := source.read(_PART):
            yield block


def download(filesystem: pafs.FileSystem, file: File, local: Path) -> None:
    """Copy a file of a store to a local file."""
    local.parent.mkdir(parents=True, exist_ok=True)
    with local.open("wb") as target:
        for block in stream(filesystem, file):
            target.write(block)


def temporary(path: str) -> str:
    """Return a hidden name in the folder of a file, which `list_files` leaves out."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name[:100]}.{uuid.uuid4().hex}"


def _write_and_rename(filesystem: pafs.FileSystem, path: str, content: Content) -> None:
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    hidden = temporary(path)
    try:
        with filesystem.open_output_stream(hidden) as sink:
            for block in local_blocks(content):
                sink.write(block)
        filesystem.move(hidden, path)
    except BaseException:
        with suppress(OSError):  # on a full disk the part would take the space of the next attempt
            filesystem.delete_file(hidden)
        raise


def _upload(filesystem: pafs.FileSystem, path: str, content: Content) -> None:
    sink = filesystem.open_output_stream(path)
    try:
        for block in local_blocks(content):
            sink.write(block)
    except BaseException:
        with suppress(OSError):
            sink.close()  # pyarrow publishes what it has: also where the stream is only dropped
        filesystem.delete_file(path)
        raise
    sink.close()


@contextmanager
def requests_within(seconds: float) -> Iterator[None]:
    """Give up requests of S3 after so many seconds: a store that has lost one would be waited for."""
    token = _timeout.set(seconds)
    try:
        yield
    finally:
        _timeout.reset(token)


def _s3(filesystem: pafs.S3FileSystem, path: str) -> tuple[S3Store, str]:
    """Return the client of a path's bucket, and the key."""
    bucket, _, key = path.partition("/")
    options = filesystem.__reduce__()[1][0]
    given = tuple((name, options[name]) for name in (*_ENDPOINT, *_CREDENTIALS))
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _client(bucket, filesystem.region, given, environment, _timeout.get()), key


@lru_cache(maxsize=16)
def _client(
    bucket: str,
    region: str,
    options: tuple[tuple[str, Any], ...],
    environment: tuple[tuple[str, str], ...],
    timeout: float,
) -> S3Store:
    """Open a bucket with the options of a pyarrow filesystem; credentials that they lack come from the environment.

    Args:
        environment: the variables of AWS, which obstore reads itself: a client is made for each environment.
        timeout: of a request, in seconds.
    """
    given = dict(options)
    endpoint = given["endpoint_override"] or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config: Any = {"region": region, "virtual_hosted_style_request": given["force_virtual_addressing"]}
    if given["anonymous"]:
        config["skip_signature"] = True
    elif given["access_key"]:
        config |= {"access_key_id": given["access_key"], "secret_access_key": given["secret_key"]}
        config |= {"session_token": given["session_token"]} if given["session_token"] else {}
    else:
        config |= profile_keys()
    if endpoint:
        config["endpoint"] = endpoint if "://" in endpoint else f"{given['scheme']}://{endpoint}"
    client: Any = _CLIENT | {
        "timeout": f"{timeout:g}s",
        "allow_http": str(config.get("endpoint", "")).startswith("http://"),
    }
    return S3Store(bucket, config=config, client_options=client, retry_config=_RETRIES)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn an error of obstore into an OSError with the code and the message of the store's answer."""
    try:
        yield
    except FileNotFoundError as error:
        if "<Code>NoSuchBucket</Code>" in str(error):
            raise OSError(_answer(error)) from error
        raise
    except exceptions.BaseError as error:
        answer = _answer(error)
        if not _REFUSED.search(str(error)):
            raise OSError(answer) from error
        if number := _OTHER_REFUSALS.get(answer.partition(":")[0]):
            raise OSError(number, answer) from error
        raise PermissionError(answer) from error


def _answer(error: Exception) -> str:
    text = str(error)
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code:
        return f"{code[1]}: {message[1]}" if message and message[1] else code[1]
    return text.partition("\n")[0].strip()
