"""Tests of reading pickles of lists and arrays: any protocol has the same values, and nothing else is read or run."""

import hashlib
import os
import pickle
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem

from tests.hostile import Payload
from vlcp_ray.sources import pickles
from vlcp_ray.sources.pickles import Array, read_bytes, read_pickle
from vlcp_ray.sources.shards import ShardError, ShardFile, open_shard

SMALL = np.arange(6, dtype=np.uint8).reshape(2, 3)
LARGE = np.random.default_rng(0).integers(0, 256, (50, 3_000), dtype=np.uint8)


def opened(folder: Path, content: bytes) -> ShardFile:
    (folder / "x").write_bytes(content)
    return open_shard(LocalFileSystem(), str(folder / "x"), "")


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def of_python_2(array: np.ndarray, **lists: list[Any]) -> bytes:
    """Write a dict of an array and of lists of names and small numbers as Python 2 did for CIFAR's files."""
    rows, size = array.shape
    parts = [
        b"\x80\x02}q\x01(",
        *(
            short(name.encode()) + b"q\x02]q\x03(" + b"".join(_py2(value) for value in values) + b"e"
            for name, values in lists.items()
        ),
        short(b"data")
        + b"q\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85q\x07U\x01bq\x08",
        b"\x87q\tRq\n(K\x01M" + rows.to_bytes(2, "little") + b"M" + size.to_bytes(2, "little") + b"\x86q\x0b",
        b"cnumpy\ndtype\nq\x0cU\x02u1q\rK\x00K\x01\x87q\x0eRq\x0f(K\x03U\x01|q\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00",
        b"tq\x11b\x89T" + array.size.to_bytes(4, "little") + array.tobytes() + b"tq\x12bu.",
    ]
    return b"".join(parts)


def _py2(value: Any) -> bytes:
    return b"K" + bytes([value]) if isinstance(value, int) else short(value) + b"q\x20"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("array", [SMALL, LARGE])
def test_read_pickle_of_any_protocol_has_the_values(tmp_path: Path, protocol: int, array: np.ndarray) -> None:
    values = [0, 255, 256, 70_000, -1, 2**40, None, True, False, "ä", b"\xff", b"", [], {}]
    values += [(1,), (1, 2), (1, 2, 3), (1,) * 4]
    names = [b"%d.png" % number for number in range(300)]
    content = pickle.dumps({b"data": array, "values": values, b"names": names, "same": values}, protocol)
    file = opened(tmp_path, content)
    found = read_pickle(file)
    data = found.pop(b"data")
    assert found == {"values": values, b"names": names, "same": values}
    assert data.shape == array.shape
    assert isinstance(data.data, bytes) == (array.nbytes < 2**16)
    assert read_bytes(file, data.data, 0, array.nbytes) == array.tobytes()
    assert read_bytes(file, data.data, 4, 2) == array.tobytes()[4:6]
    with pytest.raises(ShardError, match="it is cut short: 2 of 3 bytes"):
        read_bytes(file, data.data, array.nbytes - 2, 3)


@pytest.mark.parametrize("array", [SMALL, LARGE])
def test_read_pickle_of_python_2_has_the_values(tmp_path: Path, array: np.ndarray) -> None:
    content = of_python_2(array, labels=[3, 200], filenames=[b"a.png", b"b.png"])
    assert pickle.loads(content, encoding="bytes")[b"labels"] == [3, 200]
    file = opened(tmp_path, content)
    found = read_pickle(file)
    assert (found[b"labels"], found[b"filenames"]) == ([3, 200], [b"a.png", b"b.png"])
    assert found[b"data"].shape == array.shape
    assert read_bytes(file, found[b"data"].data, 0, array.nbytes) == array.tobytes()


#: Of cifar-10-batches-py, with the MD5 by which torchvision knows it.
META = (
    b"\x80\x02}q\x01(U\x13num_cases_per_batchq\x02M\x10'U\x0blabel_namesq\x03]q\x04(U\x08airplaneq\x05U\nautomobileq\x06"
    b"U\x04birdq\x07U\x03catq\x08U\x04deerq\tU\x03dogq\nU\x04frogq\x0bU\x05horseq\x0cU\x04shipq\rU\x05truckq\x0eeU\x07num_vis"
    b"q\x0fM\x00\x0cu."
)


def test_read_pickle_of_the_published_batches_meta(tmp_path: Path) -> None:
    assert hashlib.md5(META).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888"
    names = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
    assert read_pickle(opened(tmp_path, META)) == {
        b"num_cases_per_batch": 10_000,
        b"label_names": names,
        b"num_vis": 3_072,
    }


def test_read_pickle_leaves_arrays_in_the_file(tmp_path: Path) -> None:
    file = opened(tmp_path, pickle.dumps({"data": np.zeros((1_000, 20_000), np.uint8)}))
    tracemalloc.start()
    found = read_pickle(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["data"].shape == (1_000, 20_000)
    assert peak < 2**20


@pytest.mark.parametrize(
    "value",
    [
        SMALL.astype(np.int16),
        SMALL.astype("V1"),
        np.array([{}, "x"]),
        np.asfortranarray(SMALL),
        np.array([(1,)], [("a", "u1")]),
        np.zeros(2, np.dtype(("u1", (3,)))).view(np.dtype([("a", "u1", (3,))])),
        {1: 2},
        {(1, 2): 3},
        1.5,
        Path("x"),
        {"a"},
        os.system,
        np.uint8(3),
        bytearray(b"x"),
    ],
    ids=str,
)
def test_read_pickle_of_something_else_is_refused(tmp_path: Path, value: Any) -> None:
    for protocol in (2, 4):
        with pytest.raises(ShardError, match=r"it (has|names) "):
            read_pickle(opened(tmp_path, pickle.dumps({"x": value}, protocol)))


def test_read_pickle_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "EXECUTED"
    for protocol in (2, 3, 4, 5):
        with pytest.raises(ShardError, match=r"it names '(__builtin__|builtins)\.eval', which arrays of numpy do not"):
            read_pickle(opened(tmp_path, pickle.dumps({"data": Payload(marker, SMALL)}, protocol)))
    assert not marker.exists()


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
ENCODE = b"c_codecs\nencode\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"\x80\x02",
        b".",
        b"\x80\x02N",
        b"\x80\x02t.",
        b"\x80\x02h\x05.",
        b"\x80\x02)R.",
        b"\x80\x02U\xffx.",
        b"\x80\x02N)R.",
        b"\x80\x02" + RECONSTRUCT + b")R.",
        b"\x80\x02" + RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01NNNNtb.",
        b"\x80\x02" + ENCODE + b"X\x01\x00\x00\x00xX\x05\x00\x00\x00rot13\x86R.",
        b"\x80\x02" + ENCODE + b"X\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R.",
        b"\x80\x02X\x01\x00\x00\x00\xff.",
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x02cos" + b"x" * 1_000_000,
        b"\x80\x02\x82\x01.",  # an extension of copyreg
        b"\x80\x02Pid\n.",
        b"\x80\x02}(]NNu.",
        b"\x80\x02]K\x01K\x02b.",
        b"\x80\x02T\xff\xff\xff\xffx.",
        b"\x80\x02K\x01a.",
        b"\x80\x02K\x01K\x02a.",
        pickle.dumps({"x": LARGE})[:100_000],
        pickle.dumps([1.5, "text"], 0),
    ],
)
def test_read_pickle_that_is_broken_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ShardError):
        read_pickle(opened(tmp_path, content))


def tuples(depth: int) -> bytes:
    """A tuple of twice the one before it, to any depth: its hash takes 2**depth steps."""
    return b")" + b"".join(b"q\x00h\x00\x86" for _ in range(depth))


def memo(number: int, content: bytes) -> bytes:
    return content + b"q" + bytes([number])


BOMBS = {
    "memo": b"N" + b"r\xff\xff\xff\xff" + b".",  # the unpickler of Python makes a table of 64 GiB
    "bytes": b"\x8e" + (2**60).to_bytes(8, "little") + b".",
    "key": b"}" + tuples(64) + b"Ns.",
    "deep": b"]" + tuples(0) + b"\x85" * 100_000 + b"a.",
    "opcodes": b"N0" * 200_000,
    "steps": b"N" * 200_000 + b".",
    "text": b"X\xff\xff\x00\x00" + b"x" * 0xFFFF + b".",
    "texts": (b"B\x00\xff\x00\x00" + bytes(0xFF00)) * 1_000 + b".",
    "number": b"\x8b" + (2**24).to_bytes(4, "little") + b"\x01" * 2**24 + b".",
    "array": RECONSTRUCT
    + b"cnumpy\nndarray\n\x8a\x06\xff\xff\xff\xff\xff\x00\x85U\x01b\x87R"
    + b"(K\x01\x8a\x06\xff\xff\xff\xff\xff\x00\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x01xtb.",
    "encoded": memo(0, ENCODE)
    + memo(1, b"X\xfe\xff\x00\x00" + b"\xc3\xa9" * 0x7FFF + b"X\x06\x00\x00\x00latin1\x86")
    # 64 KiB from six bytes
    + b"h\x00h\x01R" * 20_000
    + b".",
    "shapes": memo(0, b"cnumpy.core.numeric\n_frombuffer\n")
    + memo(1, b"(" + b"K\x00" * 2**15 + b"t")
    + memo(2, b"(U\x01xcnumpy\ndtype\nU\x02u1\x85Rh\x01X\x01\x00\x00\x00Ct")
    + b"h\x00h\x02R" * 30_000
    + b".",
    "names": (b"cnumpy" + b"\r" * 249 + b"\nndarray" + b"\r" * 248 + b"\n") * 2**14 + b".",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_read_pickle_that_is_a_bomb_takes_bounded_memory_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: str
) -> None:
    monkeypatch.setattr(pickles, "_MAX_STEPS", 2**17)
    file = opened(tmp_path, b"\x80\x02" + BOMBS[bomb])
    start = time.monotonic()
    tracemalloc.start()
    try:
        found = read_pickle(file)
    except ShardError:
        found = None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**27
    assert time.monotonic() - start < 30
    if bomb in ("encoded", "shapes", "names"):
        assert found is None
    if bomb == "array":  # nothing is made of it before its size is compared
        assert found == Array((2**40 - 1,), b"x")


def test_read_pickle_reads_no_name_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, sizes, read = opened(tmp_path, b"\x80\x02" + RECONSTRUCT * 100 + b"."), list[int](), ShardFile.read
    monkeypatch.setattr(ShardFile, "read", lambda file, size=-1: (sizes.append(size), read(file, size))[1])
    read_pickle(file)
    assert len(sizes) == 3 * 100 + 3


@pytest.mark.parametrize("length", [63, 64, 300])
def test_read_pickle_with_a_long_name_is_refused(tmp_path: Path, length: int) -> None:
    message = "it names 'xxxx" if length < 64 else "it has a name without an end in 64 bytes, so it is not read"
    with pytest.raises(ShardError, match=message):
        read_pickle(opened(tmp_path, b"\x80\x02c" + b"x" * length + b"\nndarray\n."))


@pytest.mark.parametrize("protocol", [2, 4])
def test_read_pickle_has_room_for_the_names_of_cifar_100(tmp_path: Path, protocol: int) -> None:
    names = [b"aquarium_fish_with_a_name_s_%06d.png" % number for number in range(50_000)]
    numbers = list(range(100)) * 500
    content = {b"filenames": names, b"fine_labels": numbers, b"coarse_labels": numbers}
    assert read_pickle(opened(tmp_path, pickle.dumps(content, protocol)))[b"filenames"] == names


def test_read_pickle_of_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(ShardError, match="it has 268,435,457 bytes, the limit is 268,435,456"):
        read_pickle(open_shard(LocalFileSystem(), str(tmp_path / "x"), ""))


def test_read_bytes_of_text_holds_what_is_asked_for(tmp_path: Path) -> None:
    text = "".join(map(chr, range(256))) * 2**16
    file = opened(tmp_path, pickle.dumps([text], 2))
    (blob,) = read_pickle(file)
    tracemalloc.start()
    content = read_bytes(file, blob, len(text) - 2**18 - 5, 2**18)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert content == text[-(2**18) - 5 : -5].encode("latin-1")
    assert peak < 2**23


def test_read_bytes_of_text_that_is_not_one_byte_a_character_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "_PIECE", 7)  # within characters
    text = "".join(map(chr, range(256))) * 300
    for ending, fails in (("", False), ("\u20ac", True)):
        content = pickle.dumps([text + ending], 2)
        file = opened(tmp_path, content)
        (blob,) = read_pickle(file)
        assert read_bytes(file, blob, 1_000, 300) == text[1_000:1_300].encode("latin-1")
        if fails:
            with pytest.raises(ShardError, match="its bytes are written as other text"):
                read_bytes(file, blob, 0, len(text) + 1)
