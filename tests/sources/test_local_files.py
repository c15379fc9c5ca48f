"""Tests of local files of strangers: devices, fifos, files that lie about their size, and links."""

import os
import socket
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.image_sets import by_source, open_set, picture, read_all, write_files, write_parquet, write_tar
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import local_files
from vlcp_ray.sources.local_files import limit_of, walk

CLASSES = {
    f"{split}/{name}/{i}.png": picture(i, "PNG")
    for split in ("train", "val")
    for name in ("cat", "dog")
    for i in (0, 1)
}
OUTSIDE = "a link that leaves the image set, which ingest.follow_links would read"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_files(tmp_path / "private", {"p.png": picture(9, "PNG")})
    return write_files(tmp_path / "set", CLASSES)


def bad_rows(root: Path, **settings: object) -> dict[str, str]:
    """Read a set, check that all good files are rows, and return the details of the others."""
    table = read_all(open_set(root, **settings))
    details = by_source(table, "detail")
    assert {name for name, reason in by_source(table, "reason").items() if not reason} >= set(CLASSES)
    assert set(table["reason"].to_pylist()) <= {"", "unreadable", "too_large"}
    return {name: details[name] for name, reason in by_source(table, "reason").items() if reason}


def test_special_files_are_unreadable_and_are_never_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cat = root / "train" / "cat"
    os.mkfifo(cat / "fifo.png")
    monkeypatch.chdir(cat)  # the path of a socket has 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    (cat / "folder.png").mkdir()
    assert bad_rows(root) == {
        "train/cat/fifo.png": "a fifo, not a regular file",
        "train/cat/socket.png": "a socket, not a regular file",
        "train/cat/folder.png": "a folder, not a regular file",
    }


def test_link_to_a_device_is_unreadable_also_where_links_are_followed(root: Path) -> None:
    (root / "train/cat/zero.png").symlink_to("/dev/zero")
    for follow_links in (False, True):
        bad = bad_rows(root, follow_links=follow_links)
        assert bad == {"train/cat/zero.png": "a character device, not a regular file"}


def test_links_that_leave_the_set_are_rejected_unless_asked_for(root: Path, tmp_path: Path) -> None:
    (root / "train/cat/outside.png").symlink_to(tmp_path / "private" / "p.png")
    (root / "train/cat/more").symlink_to(tmp_path / "private")
    (root / "train/my pet").symlink_to(tmp_path / "private")
    source = open_set(root)
    assert source.classes.keys == ("cat", "dog")
    assert f"not read are train/my pet, {OUTSIDE}" in source.description
    assert bad_rows(root) == dict.fromkeys(("train/cat/outside.png", "train/cat/more", "train/my pet"), OUTSIDE)
    followed = read_all(open_set(root, follow_links=True))
    assert open_set(root, follow_links=True).classes.keys == ("cat", "dog", "my pet")
    assert {"train/cat/outside.png", "train/cat/more/p.png", "train/my pet/p.png"} <= set(
        followed["source"].to_pylist()
    )
    with pytest.raises(ConfigError, match=r"the folder train/my pet is a link that leaves .*; set ingest.follow_links"):
        open_set(root, classes=["cat", "my pet"])
    assert open_set(root, classes=["cat"]).classes.keys == ("cat",)


def test_set_whose_folders_are_all_links_is_refused_with_the_setting(root: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "linked" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "linked" / "train" / name).symlink_to(root / "train" / name)
    with pytest.raises(ConfigError, match=r"train/cat \(and 1 more\) is a link .*; set ingest.follow_links"):
        open_set(tmp_path / "linked")
    assert len(read_all(open_set(tmp_path / "linked", follow_links=True))) == 4


def test_links_inside_the_set_are_read_and_the_set_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (root / "train/cat/again.png").symlink_to("../dog/0.png")
    (root / "train/bird").symlink_to("dog")
    (root / "train/cat/dogs").symlink_to("../dog")
    (tmp_path / "link").symlink_to(root)
    sources = set(read_all(open_set(tmp_path / "link"))["source"].to_pylist())
    assert sources - set(CLASSES) == {
        "train/cat/again.png",
        *(f"{folder}/{i}.png" for folder in ("train/bird", "train/cat/dogs") for i in (0, 1)),
    }
    assert bad_rows(tmp_path / "link") == {}


def test_links_of_the_hubs_cache_lead_to_its_blobs_and_no_further(tmp_path: Path) -> None:
    """A commit in the cache of the Hugging Face hub is a folder of links to the folder `blobs` of the same set."""
    cached, commit = tmp_path / "datasets--owner--pets", tmp_path / "datasets--owner--pets" / "snapshots" / "0a1b"
    (cached / "blobs").mkdir(parents=True)
    for number, (name, content) in enumerate(CLASSES.items()):
        (cached / "blobs" / str(number)).write_bytes(content)
        (commit / name).parent.mkdir(parents=True, exist_ok=True)
        (commit / name).symlink_to(os.path.relpath(cached / "blobs" / str(number), (commit / name).parent))
    assert bad_rows(commit) == {}
    write_files(tmp_path / "private", {"p.png": picture(9, "PNG")})
    (commit / "train" / "cat" / "outside.png").symlink_to(tmp_path / "private" / "p.png")
    assert bad_rows(commit) == {"train/cat/outside.png": OUTSIDE}
    assert limit_of(pafs.LocalFileSystem(), str(commit), follow_links=False) == str(cached)
    (cached / "blobs").rename(tmp_path / "blobs")  # without it the folder is one like any other
    assert limit_of(pafs.LocalFileSystem(), str(commit), follow_links=False) == str(commit)


def test_loops_of_folder_links_end(root: Path) -> None:
    for i in range(30):  # 2**30 paths
        for name in "ab":
            (root / f"train/cat/{i}").mkdir(exist_ok=True)
            (root / f"train/cat/{i}/{name}").symlink_to(f"../{(i + 1) % 30}")
    (root / "train/cat/up").symlink_to("..")
    (root / "train/cat/self.png").symlink_to("self.png")
    bad = bad_rows(root)
    assert bad["train/cat/up"] == "a link to a folder that it lies in"
    assert "Too many levels of symbolic links" in bad["train/cat/self.png"]
    assert len(bad) == 2


def test_folder_without_permission_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    (listed,) = walk(str(tmp_path), {".png"}, "")
    assert listed.problem == "a folder that cannot be listed: Permission denied"


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shard_that_is_no_regular_file_or_a_link_outside_costs_a_row(tmp_path: Path, kind: str) -> None:
    rows = [(picture(1), "1.jpg", "cat")]
    members = [("1.jpg", picture(1)), ("1.cls", b"cat")]
    for folder in ("set", "private"):
        file = tmp_path / folder / f"train-0.{kind}"
        write_parquet(file, rows, None) if kind == "parquet" else write_tar(file, members)
    (tmp_path / "set" / f"train-1.{kind}").symlink_to(tmp_path / "private" / f"train-0.{kind}")
    os.mkfifo(tmp_path / "set" / f"train-2.{kind}")
    (tmp_path / "set" / "loop").symlink_to(".")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "private")
    table = read_all(open_set(tmp_path / "set"))
    assert table["reason"].to_pylist().count("") == 1
    assert {name.partition(":")[0] for name, reason in by_source(table, "reason").items() if reason} == {
        f"train-1.{kind}",
        f"train-2.{kind}",
        "loop",
        "more",
    }
    followed = read_all(open_set(tmp_path / "set", follow_links=True))
    assert followed["reason"].to_pylist().count("") == 3


def test_file_that_the_user_names_may_be_a_link(tmp_path: Path) -> None:
    write_parquet(tmp_path / "blobs" / "x.parquet", [(picture(1), "1.jpg", "cat")], None)
    (tmp_path / "train.parquet").symlink_to(tmp_path / "blobs" / "x.parquet")
    assert len(read_all(open_set(tmp_path / "train.parquet"))) == 1


def test_read_takes_no_more_than_asked_whatever_the_size_says() -> None:
    """Files of /proc have the size 0, and more bytes than that."""
    assert os.stat("/proc/self/status").st_size == 0
    assert len(local_files.read("/proc/self/status", 100)) == 101
    assert len(local_files.read("/proc/self/status", 10**6)) > 500


@pytest.mark.parametrize("path", ["/dev/zero", "/tmp"])
def test_read_of_anything_else_than_a_regular_file_raises(path: str) -> None:
    with pytest.raises(IsADirectoryError, match="not a regular file"):
        local_files.read(path, 10)


def test_read_of_a_fifo_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(IsADirectoryError, match="a fifo, not a regular file"):
        local_files.read(str(tmp_path / "x.png"), 10)


def test_file_that_grows_behind_its_size_is_too_large(root: Path) -> None:
    (root / "train/cat/status.png").symlink_to("/proc/self/status")
    assert bad_rows(root, follow_links=True, max_bytes=len(max(CLASSES.values(), key=len))) == {
        "train/cat/status.png": f"more bytes than its size says, the limit is {len(max(CLASSES.values(), key=len))}"
    }


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.JPG", ".jpg"), ("a.b.png", ".png"), ("a.", "no suffix"), ("a", "no suffix"), (".a", "no suffix")],
)
def test_suffix_of_is_what_files_are_counted_by(name: str, suffix: str) -> None:
    assert local_files.suffix_of(name) == suffix


def test_walk_counts_every_other_file_once(tmp_path: Path) -> None:
    write_files(tmp_path, dict.fromkeys(["a.txt", "b.txt", "deeper/c.txt", "d.jpg", "noext", ".hidden"], b""))
    skipped: dict[str, int] = {}
    assert [file.base_name for file in walk(str(tmp_path), {".jpg"}, "", skipped=skipped)] == ["d.jpg"]
    assert skipped == {".txt": 3, "no suffix": 1}
