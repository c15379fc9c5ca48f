"""Tests of reading gzip files by position: the bytes are those of the file, damage keeps what lies before it."""

import gzip
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem

from vlcp_ray.sources import gzip_shards
from vlcp_ray.sources.gzip_shards import WINDOW, GzipShard
from vlcp_ray.sources.shards import ShardError, open_shard

NOISE = np.random.default_rng(0).integers(0, 256, 3 * WINDOW, dtype=np.uint8).tobytes()
TEXT = b"".join(b"%d " % number for number in range(200_000))


def opened(folder: Path, content: bytes) -> GzipShard:
    (folder / "x.gz").write_bytes(content)
    return GzipShard(open_shard(LocalFileSystem(), str(folder / "x.gz"), ""))


def read_until_damage(shard: GzipShard) -> tuple[int, str]:
    """Read byte by byte; returns the number of bytes and the error, "" at the end."""
    count = 0
    try:
        while shard.read(1):
            count += 1
    except ShardError as error:
        return count, str(error)
    return count, ""


@pytest.mark.parametrize(
    "pack",
    [
        lambda content: gzip.compress(content),
        lambda content: gzip.compress(content, 0) + bytes(1_000),
        lambda content: gzip.compress(content[:99_999]) + gzip.compress(b"") + gzip.compress(content[99_999:]),
        lambda content: gzip.compress(content[:1]) + bytes(100_000) + gzip.compress(content[1:]),
    ],
)
@pytest.mark.parametrize("content", [NOISE, TEXT, b"x"])
def test_gzip_shard_reads_as_the_unpacked_bytes(tmp_path: Path, content: bytes, pack: Callable[[bytes], bytes]) -> None:
    shard, draw = opened(tmp_path, pack(content)), random.Random(0)
    for _ in range(40):
        at, size = draw.choice([0, draw.randrange(len(content) + 10)]), draw.choice([0, 1, 512, 100_000, 2**30])
        shard.seek(at)
        assert shard.read(size) == content[at : at + size]


def test_gzip_shard_is_unpacked_once_where_reads_go_back_by_less_than_a_window(tmp_path: Path) -> None:
    shard, at = opened(tmp_path, gzip.compress(NOISE, 1)), 0
    while at < len(NOISE):
        for back in (0, 512, WINDOW - 1):
            shard.seek(max(at - back, 0))
            assert shard.read(512) == NOISE[max(at - back, 0) :][:512]
        at += 300_000
    assert shard._unpacked <= len(NOISE)


@pytest.mark.parametrize(
    ("cut", "least", "most"),
    [
        (0, 0, 0),
        (1, 0, 0),
        (10, 0, 0),
        (1_000, 1_000, 4_999),
        (-8, 5_000, 5_000),
        (-4, 5_000, 5_000),
        (-1, 5_000, 5_000),
    ],
)
def test_gzip_shard_that_is_cut_short_has_all_bytes_before_the_cut(
    tmp_path: Path, cut: int, least: int, most: int
) -> None:
    count, error = read_until_damage(opened(tmp_path, gzip.compress(TEXT[:5_000])[:cut]))
    assert error == "the gzip file is cut short"
    assert least <= count <= most


def test_gzip_shard_with_damaged_bytes_has_those_before_them(tmp_path: Path) -> None:
    packed = bytearray(
        gzip.compress(NOISE[:50_000], 0)
    )  # stored: damage within the noise is found by the checksum only
    packed[30_000] ^= 1
    assert read_until_damage(opened(tmp_path, bytes(packed))) == (
        50_000,
        "the gzip file is damaged (Error -3 while decompressing data: incorrect data check)",
    )
    packed = bytearray(gzip.compress(TEXT))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = b"\xff" * 64
    count, error = read_until_damage(opened(tmp_path, bytes(packed)))
    assert error.startswith("the gzip file is damaged")
    assert len(TEXT) // 3 < count < len(TEXT)


def test_gzip_shard_with_something_behind_it_is_damaged(tmp_path: Path) -> None:
    count, error = read_until_damage(opened(tmp_path, gzip.compress(TEXT[:5_000]) + b"something"))
    assert (count, error.partition(" (")[0]) == (5_000, "the gzip file is damaged")


def test_gzip_bomb_takes_bounded_memory_and_time(tmp_path: Path) -> None:
    packed = gzip.compress(bytes(2**27))
    shard = opened(tmp_path, packed)
    tracemalloc.start()
    start = time.monotonic()
    shard.seek(2**27 - 1)
    with pytest.raises(ShardError, match=r"bytes of the gzip file unpack to more than 9.* with gunzip"):
        shard.read(1)
    seconds, (_, peak) = time.monotonic() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shard._unpacked < 2**26 + 200 * len(packed) + 2**20
    assert peak < 2**23
    assert seconds < 20
    shard.seek(0)
    with pytest.raises(ShardError, match="unpack to more than"):  # not again from the start
        shard.read(1)


def test_gzip_shard_of_streams_without_end_is_damaged(tmp_path: Path) -> None:
    count, error = read_until_damage(opened(tmp_path, gzip.compress(b"x") + gzip.compress(b"") * 2_000))
    assert (count, error) == (1, "the gzip file has more than 1,000 empty streams in a row")


def test_gzip_shard_of_many_small_streams_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_shards, "_PACKED", 64)
    packed = b"".join(gzip.compress(TEXT[at : at + 100]) for at in range(0, 20_000, 100))
    assert opened(tmp_path, packed).read(30_000) == TEXT[:20_000]
