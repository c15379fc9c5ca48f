"""Read a shard that is packed with gzip by position, as it is unpacked once from its start to its end."""

import zlib
from contextlib import suppress
from typing import Any, Final

from vlcp_ray.sources.shards import ShardError, ShardFile

_MAGIC: Final = b"\x1f\x8b"
_GZIP: Final = 31  # zlib's window bits of a gzip file: its header is read, its checksum is compared
_PACKED: Final = 2**16  # bytes that are read at a time
_PIECE: Final = 2**18  # bytes that are unpacked at a time
#: Unpacked bytes that are kept behind the position: more than all the headers of one member of a tar.
WINDOW: Final = 2**21
_FREE: Final = 2**26  # bytes that any file may unpack to
_RATIO: Final = (
    200  # images and headers of tars are packed to a tenth at best, black pictures of raw bytes to a hundredth
)
_MAX_EMPTY: Final = 1_000  # streams in a row that unpack to nothing; pigz and bgzip write one at most


class GzipShard:
    """The unpacked bytes of a gzip file, also of several streams behind each other, as pigz and bgzip write them.

    Memory: 8 MiB and one read. Going back further than 2 MiB unpacks the file again from its start. All that is
    unpacked counts: more than 64 MiB and 200 times the bytes of the file is damage, so that a bomb takes seconds.
    """

    def __init__(self, file: ShardFile) -> None:
        """Take an open file; nothing is read."""
        self.file, self.path = file, file.path
        self.limit = _FREE + _RATIO * file.size
        self._position, self._unpacked = 0, 0
        self._begin()

    def seek(self, position: int) -> None:
        """Set the position in the unpacked bytes; nothing is read."""
        self._position = position

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end.

        Raises:
            ShardError: the file is damaged before the end of these bytes.
            StoreError: the store fails.
        """
        if self._position < self._start:
            self._begin()
        while self._start + len(self._kept) < self._position + size and (piece := self._unpack()):
            self._kept += piece
            self._drop()
        at = self._position - self._start
        content = bytes(self._kept[at : at + size])
        self._position += len(content)
        return content

    def _begin(self) -> None:
        self._start, self._kept = 0, bytearray()
        self._packed_at, self._packed = 0, b""
        self._stream: Any = None
        self._streams, self._empty = 0, 0
        self._problem = ""

    def _drop(self) -> None:
        """Forget what lies more than the window behind the position, in steps of a window."""
        extra = min(self._position - self._start, len(self._kept)) - WINDOW
        if extra >= WINDOW:
            del self._kept[:extra]
            self._start += extra

    def _unpack(self) -> bytes:
        """Unpack the next bytes; none at the end. Raises ShardError where they are damaged."""
        while not self._problem:
            is_between = self._stream is None and self._streams > 0  # streams, where zeros may stand
            packed = self._packed or self._read_packed()
            if is_between and not packed:
                return b""
            self._packed = packed.lstrip(b"\0") if is_between else packed
            # At the end of the file zlib may still hold bytes.
            if (self._packed or not packed) and (content := self._inflate()):
                return content
            if not packed and self._stream is not None and not self._problem:
                self._problem = "the gzip file is cut short"
        raise ShardError(self._problem)

    def _read_packed(self) -> bytes:
        self.file.seek(self._packed_at)
        packed = self.file.read(_PACKED)
        self._packed_at += len(packed)
        return packed

    def _inflate(self) -> bytes:
        """Unpack a piece of the packed bytes; none if more of them are needed, or a stream ends."""
        if self._stream is None:
            self._stream = zlib.decompressobj(_GZIP)
            self._streams += 1
            self._empty += 1
        before = self._stream.copy()
        content: bytes
        try:
            content = self._stream.decompress(self._packed, _PIECE)
        except zlib.error as error:
            content, self._problem = _salvage(before, self._packed), f"the gzip file is damaged ({error})"
        if self._stream.eof:
            self._packed, self._stream = self._stream.unused_data, None
        else:
            self._packed = self._stream.unconsumed_tail
        self._unpacked += len(content)
        self._empty = 0 if content else self._empty
        if self._unpacked > self.limit:
            self._problem = (
                f"the {self.file.size:,} bytes of the gzip file unpack to more than {self.limit:,}; if you trust it, "
                "unpack it with gunzip"
            )
            return b""
        if self._empty > _MAX_EMPTY:
            self._problem = f"the gzip file has more than {_MAX_EMPTY:,} empty streams in a row"
        return content


def is_gzip(file: ShardFile) -> bool:
    """Return whether a file begins as gzip does, whatever its name."""
    file.seek(0)
    return file.read(len(_MAGIC)) == _MAGIC


def _salvage(stream: Any, packed: bytes) -> bytes:
    """Unpack byte by byte up to the damage: zlib returns nothing of a call that meets it."""
    content = bytearray()
    with suppress(zlib.error):
        for byte in packed:
            content += stream.decompress(bytes([byte]))
    return bytes(content)
