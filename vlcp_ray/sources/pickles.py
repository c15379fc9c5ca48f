"""Read pickles of lists, names, numbers and arrays of bytes, by a machine of its own that can run nothing.

Unpickling is not safe even where it may import numpy only: one opcode can ask for any memory, a key can take any time.
Here no name of a file is imported: the calls that numpy writes for an array are recognised and become an `Array`, and
every other opcode or name is refused.
"""

import codecs
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from vlcp_ray.sources.shards import ShardError, ShardFile

_MAX_FILE: Final = 2**28  # bytes; the largest file of CIFAR-100 has 155 MB
_MAX_STEPS: Final = 2**20  # opcodes; that file has 200,000, or 500,000 where Python 3 has written it for Python 2
#: Bytes of everything but the arrays, and of what is made of them; that file has 5 million as Python 3 has written it.
_MAX_READ: Final = 2**23
_INLINE: Final = 2**16  # bytes of a text; a longer one is left in the file
_MAX_NAME: Final = 64  # bytes of the name of a module or a function with its end; those of numpy have 23
_PIECE: Final = 2**20  # bytes
_MAX_STATE: Final = 8  # values of the state of a numpy type
_MAX_SIDES: Final = 8  # of an array


@dataclass(frozen=True)
class Blob:
    """Bytes that were left in the file: where they are, and whether as UTF-8 of characters that stand for one byte."""

    start: int
    size: int
    is_text: bool = False


@dataclass(frozen=True)
class Array:
    """An array of bytes in C's order: its shape and its content."""

    shape: tuple[int, ...]
    data: bytes | Blob

    @property
    def size(self) -> int:
        """Bytes of the content in the file; as text more than those of the array."""
        return self.data.size if isinstance(self.data, Blob) else len(self.data)


class _Known(Enum):
    """The names that numpy's arrays refer to, and what calling them leads to."""

    RECONSTRUCT = auto()
    FROM_BUFFER = auto()
    NDARRAY = auto()
    DTYPE = auto()
    ENCODE = auto()  # as Python 3 writes bytes for Python 2
    BYTES = auto()  # none
    EMPTY_ARRAY = auto()  # whose state follows
    BYTE = auto()  # the type of 8-bit numbers


_NAMES: Final = {
    f"numpy.{core}.{name}": known
    for core in ("core", "_core")
    for name, known in (("multiarray._reconstruct", _Known.RECONSTRUCT), ("numeric._frombuffer", _Known.FROM_BUFFER))
} | {
    "numpy.ndarray": _Known.NDARRAY,
    "numpy.dtype": _Known.DTYPE,
    "_codecs.encode": _Known.ENCODE,
    "__builtin__.bytes": _Known.BYTES,
}


def read_pickle(file: ShardFile) -> Any:
    """Read a pickle of protocol 2 to 5. Dicts have names as keys; text of Python 2 is bytes.

    Memory: 8 MiB of the file; what is longer than 64 KiB is not read, see `read_bytes`.

    Raises:
        ShardError: the file is damaged, too large, or has anything else in it.
        StoreError: the store fails.
    """
    if file.size > _MAX_FILE:
        raise ShardError(f"it has {file.size:,} bytes, the limit is {_MAX_FILE:,}")
    machine = _Machine(file)
    try:
        for _ in range(_MAX_STEPS):
            code = machine.take(1)
            if code == b".":
                return machine.stack.pop()
            if code not in _STEPS:
                raise ShardError(f"it has the opcode {code!r}, which lists and arrays do not need, so it is not read")
            _STEPS[code](machine)
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise ShardError(f"it is no pickle of lists and arrays ({type(error).__name__}: {error})") from error
    raise ShardError(f"it has more than {_MAX_STEPS:,} opcodes")


def read_bytes(file: ShardFile, data: bytes | Blob, start: int, size: int) -> bytes:
    """Read bytes of an array; of one that was written as text, all bytes before them are read and dropped.

    Raises:
        ShardError: there are fewer.
        StoreError: the store fails.
    """
    if isinstance(data, bytes):
        content = data[start : start + size]
    elif data.is_text:
        content = _read_text(file, data, start, start + size)
    else:
        file.seek(data.start + start)
        content = file.read(min(size, max(data.size - start, 0)))
    if len(content) < size:
        raise ShardError(f"it is cut short: {len(content)} of {size} bytes")
    return content


def _read_text(file: ShardFile, blob: Blob, start: int, end: int) -> bytes:
    """Return the characters of a text from `start` to `end`, each as a byte; of those before it holds a piece."""
    decoder, content = codecs.getincrementaldecoder("utf-8")(), bytearray()
    file.seek(blob.start)
    left, at = blob.size, 0
    try:
        while left > 0 and at < end:
            piece = file.read(min(left, _PIECE))
            if not piece:
                break
            left -= len(piece)
            decoded = decoder.decode(piece).encode("latin-1")
            content += decoded[max(start - at, 0) : end - at]
            at += len(decoded)
    except UnicodeError as error:
        raise ShardError(f"its bytes are written as other text ({type(error).__name__})") from error
    return bytes(content)


class _Machine:
    """The stack and the memo of a pickle that is read."""

    def __init__(self, file: ShardFile) -> None:
        self.file, self.left = file, _MAX_READ
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        file.seek(0)

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ShardError(f"it has more than {_MAX_READ:,} bytes besides its arrays")

    def take(self, size: int) -> bytes:
        self.spend(size)
        content = self.file.read(size)
        if len(content) < size:
            raise ShardError("it is cut short")
        return content

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def push_bytes(self, size: int, is_text: bool = False) -> None:
        if size > _INLINE:
            start = self.file.tell()
            if start + size > self.file.size:
                raise ShardError("it is cut short")
            self.file.seek(start + size)
            self.stack.append(Blob(start, size, is_text))
            return
        content = self.take(size) if size > 0 else b""
        self.stack.append(content.decode() if is_text else content)

    def pop_to_mark(self) -> list[Any]:
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def push_tuple(self, size: int) -> None:
        values = [self.stack.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(values)))

    def append(self, values: list[Any]) -> None:
        _checked(self.stack[-1], list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        # Other keys may take any time to hash.
        keys = [_checked(key, bytes | str) for key in values[::2]]
        _checked(self.stack[-1], dict).update(zip(keys, values[1::2], strict=False))

    def put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def push_name(self, module: object, name: object) -> None:
        full = f"{_name(module)}.{_name(name)}"
        if full not in _NAMES:
            raise ShardError(
                f"it names {full[: 2 * _MAX_NAME]!r}, which arrays of numpy do not need, so it is not read"
            )
        self.stack.append(_NAMES[full])

    def line(self) -> bytes:
        start = self.file.tell()
        name, end, _ = self.file.read(_MAX_NAME).partition(b"\n")  # readline would read each byte alone
        if not end:
            raise ShardError(f"it has a name without an end in {_MAX_NAME} bytes, so it is not read")
        self.spend(len(name) + 1)
        self.file.seek(start + len(name) + 1)
        return name

    def call(self) -> None:
        arguments, function = _checked(self.stack.pop(), tuple), self.stack.pop()
        value = _call(function, arguments)
        if isinstance(value, bytes):  # one text of the memo can be encoded any number of times
            self.spend(len(value))
        self.stack.append(value)

    def build(self) -> None:
        state, value = _checked(self.stack.pop(), tuple), self.stack.pop()
        if value is _Known.BYTE and len(state) == _MAX_STATE and all(part is None for part in state[2:5]):
            self.stack.append(value)
        elif value is _Known.EMPTY_ARRAY and len(state) == len(_STATE) and state[3] is False:
            self.stack.append(_array(state[1], state[2], state[4]))
        else:
            raise ShardError("it has an array or an object of a form that is not read")


_STATE: Final = ("version", "shape", "type", "is in Fortran's order", "bytes")


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Return what a call that numpy has written means. Raises ShardError for every other call."""
    match function, arguments:
        case _Known.RECONSTRUCT, (_Known.NDARRAY, tuple(), bytes() | str()):
            return _Known.EMPTY_ARRAY
        case _Known.DTYPE, (b"u1" | "u1", *_):
            return _Known.BYTE
        case _Known.FROM_BUFFER, (data, dtype, shape, "C"):
            return _array(shape, dtype, data)
        case _Known.ENCODE, (Blob(is_text=True) as blob, "latin1"):
            return blob
        case _Known.ENCODE, (str() as text, "latin1") if text.isascii() or max(text) <= "\xff":
            return text.encode("latin-1")
        case _Known.BYTES, ():
            return b""
    raise ShardError("it has an array of another type than bytes, or a call of another form, which is not read")


def _array(shape: Any, dtype: Any, data: Any) -> Array:
    # A long tuple of the memo could be the shape of any number of arrays.
    is_shape = isinstance(shape, tuple) and len(shape) <= _MAX_SIDES
    is_shape = is_shape and all(type(side) is int and side >= 0 for side in shape)
    if dtype is not _Known.BYTE or not is_shape or not isinstance(data, bytes | Blob):
        raise ShardError("it has an array of another form than bytes in rows")
    return Array(shape, data)


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ShardError(f"it has a {type(value).__name__} in a place where lists and arrays have none")
    return value


def _name(value: object) -> str:
    return value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else str(_checked(value, str))


#: What each opcode does; those of protocols 0 and 1 that write numbers and text as lines are not among them.
_STEPS: Final[Mapping[bytes, Callable[[_Machine], Any]]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"K": lambda m: m.stack.append(m.number(1)),
    b"M": lambda m: m.stack.append(m.number(2)),
    b"J": lambda m: m.stack.append(m.number(4, signed=True)),
    b"\x8a": lambda m: m.stack.append(m.number(m.number(1), signed=True)),  # LONG1
    b"T": lambda m: m.push_bytes(m.number(4, signed=True)),  # BINSTRING, of Python 2
    b"U": lambda m: m.push_bytes(m.number(1)),
    b"B": lambda m: m.push_bytes(m.number(4)),  # BINBYTES
    b"C": lambda m: m.push_bytes(m.number(1)),
    b"\x8e": lambda m: m.push_bytes(m.number(8)),
    b"\x96": lambda m: m.push_bytes(m.number(8)),  # BYTEARRAY8
    b"X": lambda m: m.push_bytes(m.number(4), is_text=True),  # BINUNICODE
    b"\x8c": lambda m: m.push_bytes(m.number(1), is_text=True),
    b"\x8d": lambda m: m.push_bytes(m.number(8), is_text=True),
    b")": lambda m: m.stack.append(()),
    b"]": lambda m: m.stack.append([]),
    b"}": lambda m: m.stack.append({}),
    b"t": lambda m: m.stack.append(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.pop_to_mark()),
    b"s": lambda m: m.set_items([*reversed([m.stack.pop(), m.stack.pop()])]),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"q": lambda m: m.put(m.number(1)),
    b"r": lambda m: m.put(m.number(4)),
    b"\x94": lambda m: m.put(len(m.memo)),  # MEMOIZE
    b"h": lambda m: m.stack.append(m.memo[m.number(1)]),
    b"j": lambda m: m.stack.append(m.memo[m.number(4)]),
    b"c": lambda m: m.push_name(m.line(), m.line()),  # GLOBAL
    b"\x93": lambda m: m.push_name(*reversed([m.stack.pop(), m.stack.pop()])),
    b"R": lambda m: m.call(),
    b"b": lambda m: m.build(),
}
