"""Tests of reading tars of strangers: special members, links, and headers without end."""

import gzip
import json
import tarfile
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import LocalFileSystem

from tests.hostile import broken_tails, labelled, sparse_tar, tar_header, tar_member, tar_sample
from tests.image_sets import by_source, open_set, picture, read_all
from vlcp_ray.sources.samples import samples
from vlcp_ray.sources.tars import open_tar

IMAGE = picture(1, "PNG")
END = bytes(1024)


def read_tar(folder: Path, *members: bytes, **settings: object) -> pa.Table:
    """Read a tar whose end is as given, beside a good one."""
    folder.mkdir(exist_ok=True)
    (folder / "train-0.tar").write_bytes(b"".join(members))
    return read_all(open_set(folder, **settings))


def details(table: pa.Table) -> Mapping[str, str]:
    return {name.rpartition(":")[2]: detail for name, detail in by_source(table, "detail").items()}


def reasons(table: pa.Table) -> Mapping[str, str]:
    return {name.rpartition(":")[2]: reason for name, reason in by_source(table, "reason").items()}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (b"3", "a character device, not a regular file"),
        (b"4", "a block device, not a regular file"),
        (b"6", "a fifo, not a regular file"),
        (b"2", "a link to /etc/hostname, which is no regular file in the tar"),
        (b"1", "a link to /etc/hostname, which is no regular file in the tar"),
        (b"Z", "a member of the type b'Z', not a regular file"),
    ],
)
def test_tar_special_member_is_an_unreadable_row(tmp_path: Path, kind: bytes, what: str) -> None:
    special = labelled("x", tar_header("x.png", kind=kind, link="/etc/hostname"))
    table = read_tar(tmp_path, tar_sample("1", IMAGE), special, tar_sample("2", IMAGE), END)
    assert reasons(table) == {"1": "", "x": "unreadable", "2": ""}
    assert details(table)["x"] == f"x.png is {what}"


def test_tar_links_lead_to_members_before_and_after_them(tmp_path: Path) -> None:
    table = read_tar(
        tmp_path,
        labelled("a/early", tar_header("a/early.png", kind=b"2", link="../b/image.png")),
        labelled("a/hard", tar_header("a/hard.png", kind=b"1", link="./b/image.png")),
        tar_sample("b/image", IMAGE),
        labelled("b/late", tar_header("b/late.png", kind=b"2", link="image.png")),
        END,
    )
    assert set(table["image"].to_pylist()) == {IMAGE}
    assert set(reasons(table)) == {"a/early", "a/hard", "b/image", "b/late"}


def test_tar_long_chain_of_links_is_read_to_its_end(tmp_path: Path) -> None:
    chain = [
        labelled(f"l{i}", tar_header(f"l{i}.png", kind=b"1", link=f"l{i - 1}.png" if i else "a.png"))
        for i in range(1500)
    ]
    table = read_tar(tmp_path, tar_sample("a", IMAGE), *chain, END)
    assert len(table) == 1501
    assert set(table["image"].to_pylist()) == {IMAGE}


def test_tar_loop_of_links_is_an_unreadable_row(tmp_path: Path) -> None:
    loop = [tar_header("s", kind=b"2", link="t"), tar_header("t", kind=b"2", link="s")]
    own = labelled("y", tar_header("y.png", kind=b"1", link="y.png"))
    table = read_tar(tmp_path, *loop, labelled("x", tar_header("x.png", kind=b"1", link="s")), own, END)
    assert reasons(table) == {"x": "unreadable", "y": "unreadable"}


def test_tar_link_to_a_sparse_member_has_the_size_of_its_target(tmp_path: Path) -> None:
    content = sparse_tar(tmp_path / "files", 1_900 * 2**20)
    assert len(content) < 20_000
    table = read_tar(tmp_path / "set", tar_sample("1", IMAGE), content)
    assert (reasons(table)["1"], reasons(table)["x"]) == ("", "too_large")
    assert "1992294400 bytes, the limit is" in details(table)["x"]


def test_tar_small_sparse_member_is_read_with_its_holes(tmp_path: Path) -> None:
    table = read_tar(tmp_path / "set", sparse_tar(tmp_path / "files", 3 * 2**20))
    (row,) = table.filter(pa.compute.equal(table["source"], "train-0.tar:x")).to_pylist()
    assert (row["reason"], row["image"]) == ("", bytes(3 * 2**20))


@pytest.mark.parametrize("tail", broken_tails())
def test_tar_header_without_end_costs_a_row_and_seconds(tmp_path: Path, tail: str) -> None:
    start = time.monotonic()
    table = read_tar(tmp_path, tar_sample("1", IMAGE), broken_tails()[tail], tar_sample("2", IMAGE), END)
    assert time.monotonic() - start < 10
    bad = {source: reason for source, reason in reasons(table).items() if reason}
    assert reasons(table)["1"] == ""
    assert set(bad.values()) == {"unreadable"}
    assert "the tar is cut short or broken at byte" in " ".join(details(table).values())


@pytest.mark.parametrize("tail", broken_tails())
def test_tar_header_without_end_in_gzip_has_the_rows_of_the_tar(tmp_path: Path, tail: str) -> None:
    members = (tar_sample("1", IMAGE), broken_tails()[tail], tar_sample("2", IMAGE), END)
    expected = by_source(read_tar(tmp_path / "plain", *members), "reason")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "train-0.tar").write_bytes(gzip.compress(b"".join(members)))
    start = time.monotonic()
    table = read_all(open_set(tmp_path / "packed"))
    assert time.monotonic() - start < 10
    assert by_source(table, "reason") == expected
    assert any("broken at byte" in detail and "gzip" in detail for detail in table["detail"].to_pylist())


def test_tar_names_that_leave_the_folder_or_repeat_are_rows(tmp_path: Path) -> None:
    names = ("/abs/one", "../../up/one", "dup", "dup", "\x1b[31mred\x07")
    table = read_tar(tmp_path, *(tar_sample(name, IMAGE) for name in names), END)
    assert reasons(table) == {"/abs/one": "", "../../up/one": "", "dup": "", "dup again 1": "", "\x1b[31mred\x07": ""}
    assert "train/cat/up/one" in table["image_id"].to_pylist()


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"[" * 200_000, "RecursionError"),
        (json.dumps({"label": "x" * 2_000}).encode(), "the label has 2000 characters, the limit is 1024"),
        (b'{"label": ' + b"1" * 5_000 + b"}", "ValueError"),
        (b"\xff\xfe", "utf-8"),
    ],
)
def test_tar_label_that_is_none_is_a_row_without_label(tmp_path: Path, content: bytes, detail: str) -> None:
    members = [tar_member("x.png", IMAGE), tar_member("x.json", content)]
    table = read_tar(tmp_path, tar_sample("1", IMAGE), *members, END)
    assert reasons(table) == {"1": "", "x": "no_label"}
    assert detail in details(table)["x"]


def test_tar_label_with_a_lone_surrogate_is_escaped(tmp_path: Path) -> None:
    members = [tar_member("x.png", IMAGE), tar_member("x.json", b'{"label": "\\ud800"}')]
    assert read_tar(tmp_path, *members, END)["class_key"].to_pylist() == ["\\ud800"]


def test_tar_name_that_no_filesystem_takes_is_shortened(tmp_path: Path) -> None:
    long = [f"{'y' * 200_000}{i}.png" for i in range(2)]
    members = [tar_member("x", name.encode(), kind=b"L") + tar_member("x", IMAGE) for name in long]
    sources = read_tar(tmp_path, *members, tar_sample("1", IMAGE), END)["source"].to_pylist()
    assert len(set(sources)) == 3
    assert max(map(len, sources)) < 300


def test_tar_that_is_none_beside_good_ones_costs_one_row(tmp_path: Path) -> None:
    (tmp_path / "train-1.tar").write_bytes(b"this is text" * 100)
    (tmp_path / "train-2.tar").write_bytes(b"")
    table = read_tar(tmp_path, tar_sample("1", IMAGE), END)
    assert reasons(table) == {"1": "", "whole file": "unreadable"}
    assert len(table) == 3
    assert "it is not a tar" in " ".join(table["detail"].to_pylist())


def test_tar_of_too_many_members_is_read_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.sources.tars._MAX_MEMBERS", 4)
    table = read_tar(tmp_path, *(tar_sample(str(number), IMAGE) for number in range(3)), END)
    assert [reasons(table)[name] for name in ("0", "1")] == ["", ""]
    assert [detail for detail in details(table).values() if detail] == [
        "the tar has more than 4 members; split it into several"
    ]


def test_tar_of_many_links_finds_those_to_the_members_that_are_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlcp_ray.sources.tars._MAX_INDEXED", 2)
    links = [
        labelled(name, tar_header(f"{name}.png", kind=b"2", link=f"{to}.png")) for name, to in (("x", 1), ("y", 2))
    ]
    table = read_tar(tmp_path, tar_sample("1", IMAGE), tar_sample("2", IMAGE), *links, END)
    assert reasons(table) == {"1": "", "2": "", "x": "", "y": "unreadable"}


def test_memory_for_a_tar_does_not_grow_with_the_names_of_its_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(2_000):
            tar.addfile(tarfile.TarInfo(f"{number:04d}{'x' * 3_900}.png"))
    tracemalloc.start()
    count = sum(1 for _ in samples(open_tar(LocalFileSystem(), str(tmp_path / "train.tar"), "")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2_000
    assert peak < 2_000_000  # the names alone have 7.8 MB
