"""Build inputs of strangers, harmless in themselves: a payload that runs only writes a marker file."""

import io
import os
import pickle
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet


class Payload:
    """Unpickles to a value, and writes the marker file."""

    def __init__(self, marker: Path, value: Any) -> None:
        self.marker, self.value = marker, value

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"(open({str(self.marker)!r}, 'a').write('x'), {self.value!r})[1]",)


def with_pickled_column(table: pa.Table, name: str, marker: Path) -> pa.Table:
    """Replace a column by one that the file declares as Ray's pickled objects; reading a value writes the marker."""
    extension = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    field = pa.field(name, pa.large_binary(), metadata=extension)
    values = [pickle.dumps(Payload(marker, value)) for value in table[name].to_pylist()]
    return table.set_column(table.column_names.index(name), field, pa.array(values, pa.large_binary()))


def tar_header(name: str, size: int = 0, kind: bytes = b"0", link: str = "") -> bytes:
    """Build the 512 bytes of a tar's header; the size may be a lie."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def tar_member(name: str, content: bytes, **kind: Any) -> bytes:
    """Build a member of a tar: its header and its content in whole blocks."""
    return tar_header(name, len(content), **kind) + content + bytes(-len(content) % 512)


def tar_sample(key: str, image: bytes, label: str = "cat") -> bytes:
    """Build the members of a sample."""
    return tar_member(f"{key}.png", image) + tar_member(f"{key}.cls", label.encode())


def labelled(key: str, *image: bytes) -> bytes:
    """Build a sample with an image of any kind of member."""
    return b"".join(image) + tar_member(f"{key}.cls", b"cat")


def sparse_tar(folder: Path, size: int) -> bytes:
    """Let GNU tar store a file with a hole of `size` bytes, and a hard link to it that is an image."""
    folder.mkdir()
    with (folder / "huge.bin").open("wb") as file:
        file.truncate(size)
    os.link(folder / "huge.bin", folder / "x.png")
    (folder / "x.cls").write_bytes(b"cat")
    names = ["huge.bin", "x.png", "x.cls"]
    subprocess.run(["tar", "--format=gnu", "--sparse", "-cf", "x.tar", *names], cwd=folder, check=True)
    return (folder / "x.tar").read_bytes()


def broken_tails() -> dict[str, bytes]:
    """Headers that tarfile alone reads without end, in quadratic time, into any memory, or by recursion."""
    records = b"2 " * 400_000 + b"="
    sparse_1_0 = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    return {
        "pax header of 8 GiB": tar_header("x", 2**33, b"x"),
        "name of 8 GiB": tar_header("x", 2**33, b"L"),
        "name of a negative size": tar_header("x", -(2**20), b"L"),
        "member of a negative size": tar_header("x.png", -(2**20)) + bytes(512),
        "pax size that is negative": tar_member("x", b"17 size=-1048576\n", kind=b"x") + tar_header("x.png"),
        "digits": tar_member("x", b"1" * 1_000_000, kind=b"x") + tar_header("x.png"),
        "digits in a value": tar_member("x", b"500005 k=" + b"1" * 499_995 + b"\n", kind=b"x") + tar_header("x.png"),
        "records that overlap": tar_member("x", records, kind=b"x") + tar_header("x.png"),
        "sparse map without end": tar_member("x", sparse_1_0, kind=b"x") + tar_header("x.png") + b"1" * 20_000_000,
        "sparse map cut short": tar_member("x", sparse_1_0, kind=b"x") + tar_header("x.png") + b"1" * 100,
        "names of names": tar_member("x", b"name", kind=b"L") * 2_000,
    }


def _write_bomb(file: Path, columns: Mapping[str, Any], **options: Any) -> int:
    """Write a parquet file with pages and dictionaries of any size; returns its size in bytes."""
    limits = {"dictionary_pagesize_limit": 2**30, "data_page_size": 2**30, "write_batch_size": 2**20}
    parquet.write_table(
        pa.table(dict(columns)),
        file,
        compression="zstd",
        store_schema=False,
        write_statistics=False,
        **limits,
        **options,
    )
    return file.stat().st_size


def _write_delta_bomb(file: Path) -> int:
    """Write a page whose only value, read in another encoding, is the header of 2**31 - 1 lengths that are all 0."""
    header = b"\x80\x80\x40\x01"  # blocks of 2**20 lengths in one part; as a plain value, the number of its bytes
    value = b"\xff\xff\xff\xff\x07" + bytes(int.from_bytes(header, "little") - 5)
    schema = pa.schema([pa.field("image", pa.binary(), nullable=False), pa.field("label", pa.string(), nullable=False)])
    parquet.write_table(
        pa.table({"image": [value], "label": ["cat"]}, schema=schema),
        file,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )
    plain, delta_lengths = b"\x15\x00\x15\x06\x15\x06", b"\x15\x0c\x15\x06\x15\x06"
    file.write_bytes(file.read_bytes().replace(plain, delta_lengths, 1))
    return file.stat().st_size


def _repeated(value: bytes, rows: int, kind: pa.DataType) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]).cast(kind))


def parquet_bombs() -> Mapping[str, Callable[[Path], int]]:
    """Return functions that write a small parquet file that takes gigabytes where it is unpacked."""
    cats = ["cat"] * 256
    image = _repeated(b"image", 256, pa.binary())
    prefix = [bytes(3_000_000) + bytes([n]) for n in range(8)] * 32  # each is the prefix of the one before
    return {
        "dictionary": lambda f: _write_bomb(f, {"image": _repeated(bytes(6_000_000), 256, pa.binary()), "label": cats}),
        "dictionary of many rows": lambda f: _write_bomb(
            f,
            {"image": _repeated(bytes(6_000_000), 2**17, pa.binary()), "label": _repeated(b"cat", 2**17, pa.string())},
        ),
        "page of zeros": lambda f: _write_bomb(
            f, {"image": [bytes(140_000_000)], "label": ["cat"]}, use_dictionary=False
        ),
        "dictionary of zeros": lambda f: _write_bomb(f, {"image": [bytes(140_000_000)], "label": ["cat"]}),
        "prefixes": lambda f: _write_bomb(
            f, {"image": prefix, "label": cats}, use_dictionary=False, column_encoding={"image": "DELTA_BYTE_ARRAY"}
        ),
        "lengths without end": _write_delta_bomb,
        "labels": lambda f: _write_bomb(f, {"image": image, "label": _repeated(b"x" * 40_000_000, 256, pa.string())}),
        "rows without end": lambda f: _write_bomb(
            f, {"image": pa.nulls(2**22, pa.binary()), "label": pa.nulls(2**22, pa.string())}, row_group_size=2**22
        ),
    }


def slow_jpeg(side: int, scans: int) -> bytes:
    """Build a progressive JPEG whose last scan is repeated: each takes time and a few hundred bytes."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True, quality=50)
    content = buffer.getvalue()
    scan = content[content.rfind(b"\xff\xda") : -2]
    return content[:-2] + scan * scans + b"\xff\xd9"
