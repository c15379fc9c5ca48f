"""Read the headers of a parquet file's pages: they say how much memory a column takes before anything is unpacked.

The footer says it too, but nobody checks the footer, while Arrow unpacks a page to exactly the size in its header.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from vlcp_ray.sources.shards import ShardError, ShardFile

_HEADER: Final = 2**12  # bytes that are read first; a header has 20 to 100, more with statistics
_MAX_HEADER: Final = 2**20
_MAX_DEPTH: Final = 16
_DICTIONARY_PAGE: Final = 2
#: Encodings whose values can be longer than the page: those with a dictionary, and those that repeat a prefix.
_DICTIONARY_ENCODINGS: Final = (2, 8)
_PREFIX_ENCODING: Final = 7
_I32: Final = 5
_STRUCT: Final = 12


@dataclass(frozen=True)
class Demand:
    """What reading a column of a row group takes.

    Args:
        page: bytes of the largest page, packed or unpacked.
        value: bytes that the longest value can have.
        total: bytes that all values can have.
    """

    page: int
    value: int
    total: int


def measure(file: ShardFile, chunk: Any) -> Demand:
    """Read the page headers of a column of a row group.

    Args:
        chunk: `ColumnChunkMetaData` of pyarrow.

    Raises:
        ShardError: a header is damaged.
    """
    largest, dictionary, longest, total = 0, 0, 0, 0
    for header in _headers(file, chunk):
        unpacked = header[2]
        largest = max(largest, unpacked, header[3])
        if header[1] == _DICTIONARY_PAGE:
            dictionary = max(dictionary, unpacked)
            if 4 * _values(header) > unpacked:
                raise ShardError(f"a dictionary of {unpacked} bytes cannot have {_values(header)} values")
            continue
        encoding = _encoding(header)
        value = dictionary if encoding in _DICTIONARY_ENCODINGS else unpacked
        is_longer = encoding in _DICTIONARY_ENCODINGS or encoding == _PREFIX_ENCODING
        longest, total = max(longest, value), total + (_values(header) * value if is_longer else unpacked)
    return Demand(largest, longest, total)


def _headers(file: ShardFile, chunk: Any) -> Iterator[dict[int, Any]]:
    """Read the headers as Arrow does: until all values of the column have been seen."""
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < position:
        position = chunk.dictionary_page_offset
    end, seen = min(position + chunk.total_compressed_size + 100, file.size), 0
    while seen < chunk.num_values and position < end:
        header, size = read_header(file, position)
        if header.get(2, -1) < 0 or not 0 <= header.get(3, -1) <= end - position:
            raise ShardError(f"the page at byte {position} has impossible sizes")
        if header[1] != _DICTIONARY_PAGE:
            seen += _values(header)
        position += size + header[3]
        yield header


def _values(header: dict[int, Any]) -> int:
    """Return the number of values: field 1 of the struct that the type of page has."""
    return max((int(header[field].get(1, 0)) for field in (5, 7, 8) if field in header), default=0)


def _encoding(header: dict[int, Any]) -> int:
    return int(header[8].get(4, 0) if 8 in header else header.get(5, {}).get(2, 0))


def read_header(file: Any, position: int) -> tuple[dict[int, Any], int]:
    """Read the header of a page: its fields by number, as in parquet.thrift, and its bytes.

    Args:
        file: with `seek` and `read`.
        position: of the header.

    Raises:
        ShardError: the header is damaged.
    """
    for limit in (_HEADER, _MAX_HEADER):
        file.seek(position)
        reader = _Compact(file.read(limit))
        try:
            header = reader.struct()
        except IndexError:
            continue
        if 1 in header:
            return header, reader.at
        break
    raise ShardError(f"the page header at byte {position} cannot be read")


class _Compact:
    """Thrift's compact protocol: the 32-bit integers and the structs of a struct, by the number of the field.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct. Raises IndexError where the data ends in it."""
        if depth > _MAX_DEPTH:
            raise ShardError("a page header of too many structs")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind, delta = head & 15, head >> 4
            number = number + delta if delta else _signed(self._varint(), 16)
            value = self._value(kind, depth)
            if kind in (_I32, _STRUCT):
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # a boolean: the kind is its value
            return None
        if kind in (4, _I32, 6):
            return _signed(self._varint(), 32)
        if kind == _STRUCT:
            return self.struct(depth + 1)
        sizes = {3: 1, 7: 8}  # a byte, a double
        if kind in sizes or kind == 8:  # 8: a string
            size = sizes.get(kind) or self._varint()
            self.at += size
            return None
        raise ShardError(f"a page header with a field of the unknown type {kind}")

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        found = re.compile(rb"[\x80-\xff]{0,9}[\0-\x7f]").match(self.data, self.at)
        if found is None:
            raise IndexError("the varint has no end")
        self.at = found.end()
        return sum((byte & 127) << (7 * place) for place, byte in enumerate(found[0]))


def _signed(value: int, bits: int) -> int:
    """Undo the zigzag coding, and cut to a number of bits as C++ does."""
    top: int = 1 << bits
    decoded = ((value >> 1) ^ -(value & 1)) % top
    return decoded - top if decoded >= top // 2 else decoded
