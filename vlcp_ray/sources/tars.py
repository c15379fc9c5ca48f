"""Read the members of a tar without trusting it: time and memory are bounded whatever its headers say.

tarfile parses the headers. Left to itself it reads a pax header of any size, follows chains of links by recursion,
searches digits in quadratic time, and goes round in a circle where a size is negative or a sparse map has no end.
"""

import hashlib
import posixpath
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from pyarrow import fs as pafs

from vlcp_ray.sources.gzip_shards import GzipShard, is_gzip
from vlcp_ray.sources.shards import ShardError, ShardFile, open_shard
from vlcp_ray.store.io import StoreError

#: The extensions of the files that are read as tars.
EXTENSIONS: Final = ("tar", "tar.gz", "tgz")

_MAX_HEADER: Final = 2**20  # bytes of all the headers of one member: its name, its pax records, its sparse map
_MAX_NAME: Final = 4096  # characters; PATH_MAX of Linux
_MAX_PADDING: Final = 2**20  # zeros after the last member: tar fills its last record, 10 KiB by default
_MAX_MEMBERS: Final = 2**22  # of a tar; all of ImageNet-1K in one tar has 2.6 million
_MAX_INDEXED: Final = 2**21  # members of a tar that links lead to
_BLOCK: Final = 512
_TYPE: Final = slice(156, 157)  # of a header
_PAX_TYPES: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_KINDS: Final = {
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a fifo",
}


@dataclass(frozen=True, slots=True)
class Content:
    """Where the bytes of a regular member are.

    Args:
        start: of the data in the tar.
        size: in bytes; of a sparse member with its holes.
        pieces: (offset, size) of the parts of a sparse member that the tar holds, one behind the other.
    """

    start: int
    size: int
    pieces: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar; links are resolved.

    Args:
        content: of the member, or of the member that a link leads to; None if there is none.
        problem: why there is no content, else "".
    """

    name: str
    content: Content | None
    problem: str = ""


class Tar:
    """The members of a tar, in their order.

    Memory: nothing is kept of a member that was read; for a tar with links 300 bytes of each of its first two million
    members, to which links may lead. A tar of more than four million members is read up to there.

    In a gzip file links are not followed, and a member is read before the header behind it: see `keep`.
    """

    def __init__(self, file: ShardFile | GzipShard) -> None:
        """Read the first header.

        Raises:
            ShardError: the file is no tar.
        """
        self.file, self.is_packed = file, isinstance(file, GzipShard)
        self._kept: dict[int, bytes | ShardError] = {}  # by the start of the member
        self.end = 0  # of the last header that could be read
        self._is_too_long = False
        self._links: dict[bytes, Content | bytes] | None = None
        for _ in self._headers():
            return
        raise ShardError(f"it is not a tar: {self.error_at_end()}")

    def __iter__(self) -> Iterator[Member]:
        """Yield all members but folders; where the headers are damaged it ends, and `error_at_end` says why."""
        for number, header in enumerate(self._headers()):
            if number == _MAX_MEMBERS:
                self._is_too_long = True
                return
            if header.isdir():
                continue
            name = _shortened(header.name)
            if header.isreg():
                yield Member(name, _content(header))
            elif header.islnk() or header.issym():
                yield self._link(name, header)
            else:
                kind = _KINDS.get(header.type, f"a member of the type {header.type!r}")
                yield Member(name, None, f"{kind}, not a regular file")

    def keep(self, contents: Collection[Content]) -> None:
        """Read some members ahead for `read`, and forget all others: for a tar that is packed.

        Only the header behind a sample tells that the sample has ended. To go back from there may mean to unpack all
        that lies before it.
        """
        self._kept = {one.start: self._kept[one.start] for one in contents if one.start in self._kept}
        for content in contents:
            if content.start not in self._kept:
                try:
                    self._kept[content.start] = self._read(content)
                except ShardError as error:
                    self._kept[content.start] = error

    def read(self, content: Content) -> bytes:
        """Read the bytes of a member.

        Raises:
            ShardError: the tar ends before them.
        """
        if content.start not in self._kept:
            return self._read(content)
        if isinstance(found := self._kept[content.start], ShardError):
            raise found
        return found

    def _read(self, content: Content) -> bytes:
        if content.pieces is None:
            return self._read_at(content.start, content.size)
        if sum(size for _, size in content.pieces) > content.size:
            raise ShardError("the parts of its sparse map overlap")
        data, start = bytearray(content.size), content.start
        for offset, size in content.pieces:
            data[offset : offset + size] = self._read_at(start, size)
            start += size
        return bytes(data[: content.size])

    def _read_at(self, start: int, size: int) -> bytes:
        self.file.seek(start)
        content = self.file.read(size)
        if len(content) < size:
            raise ShardError(f"it is cut short: {len(content)} of {size} bytes")
        return content

    def error_at_end(self) -> str:
        """Check that the tar ends where its headers end: only zeros follow, and not many. Returns the error or "".

        tarfile takes a broken header, or zeros in the middle, for the end, and all that follows would be lost silently.
        """
        if self._is_too_long:
            return f"the tar has more than {_MAX_MEMBERS:,} members; split it into several"
        self.file.seek(self.end)
        try:
            rest = self.file.read(_MAX_PADDING + 1)
        except ShardError as error:
            return str(error)
        if 0 < len(rest) <= _MAX_PADDING and not any(rest):
            return ""
        whole = f"of {self.file.size}" if isinstance(self.file, ShardFile) else "of what the gzip file unpacks to"
        return f"the tar is cut short or broken at byte {self.end} {whole}"

    def _headers(self) -> Iterator[tarfile.TarInfo]:
        """Read the headers one after the other, and keep none; ends at the first that cannot be used."""
        headers: Any = _Headers(self.file)
        end = 0
        try:
            with tarfile.open(fileobj=headers, mode="r:", errors="backslashreplace") as tar:  # names in any encoding
                kept: Any = vars(tar)["members"]  # tarfile keeps every header that it has read
                while (header := tar.next()) and tar.offset > end and _is_possible(header):
                    end = tar.offset
                    self.end = max(self.end, end)
                    kept.clear()
                    yield header
                    headers.begin()
        except StoreError:
            raise
        except (
            tarfile.TarError,
            ValueError,
            OverflowError,
            RecursionError,
            ShardError,
        ):  # damaged: `error_at_end` reports it
            return

    def _link(self, name: str, header: tarfile.TarInfo) -> Member:
        if self.is_packed:
            return Member(name, None, f"a link to {_shortened(header.linkname)}, which is not followed in a gzip file")
        if self._links is None:
            self._links = self._index()
        target = _target(header)
        content = _resolve(self._links, target)
        if content is None:
            return Member(name, None, f"a link to {_shortened(header.linkname)}, which is no regular file in the tar")
        return Member(name, content)

    def _index(self) -> dict[bytes, Content | bytes]:
        """Read all headers: the content of each regular file, and the target of each link, by digest of the name.

        Only for tars with links. Digests, so that memory is some 300 bytes for each member, whose header has 512.
        """
        index: dict[bytes, Content | bytes] = {}
        for header in islice(self._headers(), _MAX_INDEXED):
            if header.isreg():
                index[_digest(header.name)] = _content(header)
            elif header.islnk() or header.issym():
                index[_digest(header.name)] = _target(header)
        return index


def open_tar(filesystem: pafs.FileSystem, path: str, limit: str) -> Tar:
    """Open a tar, which may be packed with gzip, and read its first header.

    Args:
        limit: as of `open_shard`.

    Raises:
        ShardError: it cannot be opened, or is no tar.
        StoreError: the store fails.
    """
    file = open_shard(filesystem, path, limit)
    return Tar(GzipShard(file) if is_gzip(file) else file)


class _Headers:
    """The file as tarfile sees it: it reads headers only, and no more than 1 MiB for one member."""

    def __init__(self, file: ShardFile | GzipShard) -> None:
        self.file, self.name, self.position = file, file.path, 0
        self.begin()

    def begin(self) -> None:
        """Begin with the headers of another member."""
        self.left, self.kind = _MAX_HEADER, b""

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        self.position = position

    def read(self, size: int) -> bytes:
        self.left -= max(size, _BLOCK)
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"a header of more than {_MAX_HEADER} bytes at byte {self.position}")
        self.file.seek(self.position)
        content = self.file.read(size)
        self.position += len(content)
        if self.kind in _PAX_TYPES:
            _check_pax(content)
        is_header = size == _BLOCK and self.kind not in (*_PAX_TYPES, *tarfile.GNU_TYPES)
        self.kind = content[_TYPE] if is_header else b""
        return content


def _check_pax(content: bytes) -> None:
    """Refuse pax records that tarfile would parse in quadratic time: those that overlap, and long rows of digits."""
    if re.search(rb"\d{65}", content):
        raise tarfile.ReadError("a pax header with a number of more than 64 digits")
    records, at = content.rstrip(b"\0"), 0
    while at < len(records):
        length = re.compile(rb"(\d+) ").match(records, at)
        end = at + int(length[1]) if length else 0
        if length is None or not length.end() < end <= len(records) or b"=" not in records[length.end() : end]:
            raise tarfile.ReadError("a pax header of records that are not `length key=value`")
        at = end


def _is_possible(header: tarfile.TarInfo) -> bool:
    """Return whether the sizes in a header can be true: negative ones would lead backwards."""
    return header.size >= 0 and all(offset >= 0 and size >= 0 for offset, size in _pieces(header) or ())


def _pieces(header: Any) -> tuple[tuple[int, int], ...] | None:
    return None if header.sparse is None else tuple((offset, size) for offset, size in header.sparse)


def _content(header: tarfile.TarInfo) -> Content:
    return Content(header.offset_data, header.size, _pieces(header))


def _target(header: tarfile.TarInfo) -> bytes:
    """Return the digest of the name that a link leads to: a symbolic one begins at its own folder."""
    folder = posixpath.dirname(header.name) if header.issym() else ""
    return _digest(posixpath.join(folder, header.linkname))


def _resolve(links: dict[bytes, Content | bytes], target: bytes) -> Content | None:
    """Follow links to a regular file; the way there is stored, so that a chain is followed once only."""
    way: list[bytes] = []
    seen: set[bytes] = set()
    found: Content | bytes | None = target
    while isinstance(found, bytes) and found not in seen:
        seen.add(found)
        way.append(found)
        found = links.get(found)
    content = found if isinstance(found, Content) else None
    for name in way:
        if content is None:
            links.pop(name, None)
        else:
            links[name] = content
    return content


def _digest(name: str) -> bytes:
    path = posixpath.normpath(name).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(path, digest_size=16).digest()


def _shortened(name: str) -> str:
    """Cut a name that no filesystem would take; its extension is kept, and it stays different from others."""
    if len(name) <= _MAX_NAME:
        return name
    stem, dot, extension = name[name.rfind("/") + 1 :].partition(".")
    key = _digest(name[: name.rfind("/") + 1 + len(stem)]).hex()
    return f"{name[:200].replace('.', '_')}~{key}{dot}{extension[:100]}"
