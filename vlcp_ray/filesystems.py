"""Knows how a folder or URI becomes a filesystem and a path in it: pyarrow's own, else fsspec's."""

import os

import pyarrow as pa
from pyarrow import fs as pafs


def open_uri(uri: str, field: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and path of a folder, a file or any URI that pyarrow or fsspec knows; nothing is read.

    Args:
        field: the setting it comes from, for the error.

    Raises:
        ValueError: the URI's scheme is not known, its driver is not installed, or it names nothing but a scheme.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        filesystem, path = _of_pyarrow(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError, ValueError) as error:
        raise ValueError(f"{field} {uri}: {error}; give a folder or a URI such as s3://bucket/folder") from error
    if not path.strip("/") and not isinstance(filesystem, pafs.LocalFileSystem):
        raise ValueError(f"{field} {uri}: it names no bucket; write s3://bucket/folder")
    return filesystem, path.rstrip("/")


def _of_pyarrow(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        filesystem, path = pafs.FileSystem.from_uri(f"fsspec+{uri}")
    return filesystem, path
