"""Tests of whole files on local disks and on a real S3 server: requests, interrupted writes, and errors."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs

from tests.s3 import BUCKET, Proxy, Server
from vlcp_ray.store import files
from vlcp_ray.store.files import File
from vlcp_ray.store.io import open_uri

BIG = 20 * 2**20  # bytes: three parts of an upload


@pytest.fixture(params=["local", "s3", "fsspec"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[pafs.FileSystem, str]:
    """A filesystem of each kind, and an empty folder in it."""
    if request.param == "local":
        return pafs.LocalFileSystem(), str(tmp_path / "folder")
    if request.param == "fsspec":
        return pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem(skip_instance_cache=True))), f"{tmp_path}/folder"
    return open_uri(request.getfixturevalue("s3").uri(f"files{tmp_path}"), "--root")


def test_files_are_written_listed_read_and_deleted(place: tuple[pafs.FileSystem, str], tmp_path: Path) -> None:
    filesystem, folder = place
    assert files.list_files(filesystem, folder) == files.list_folders(filesystem, folder) == []
    (tmp_path / "big").write_bytes(b"x" * BIG)
    files.write(filesystem, f"{folder}/b.txt", b"two")
    files.write(filesystem, f"{folder}/inner/big", tmp_path / "big")
    files.write(filesystem, f"{folder}/a.txt", memoryview(pa.py_buffer(b"one")))
    files.write(filesystem, f"{folder}-other/c", b"no file of the folder")
    top = [File(f"{folder}/a.txt", 3), File(f"{folder}/b.txt", 3)]
    big = File(f"{folder}/inner/big", BIG)
    assert files.list_files(filesystem, folder) == top
    assert files.list_files(filesystem, folder, recursive=True) == [*top, big]
    assert files.list_folders(filesystem, folder) == ["inner"]
    assert [files.read(filesystem, file.path) for file in top] == [b"one", b"two"]
    assert [files.read(filesystem, f"{folder}/a.txt", limit)[:2] for limit in (1, 2)] == [b"on"] * 2
    assert files.read(filesystem, f"{folder}/a.txt", 3) == b"one"
    assert 10**7 < len(files.read(filesystem, big.path, 10**7)) < BIG
    assert b"".join(files.stream(filesystem, big)) == b"x" * BIG
    files.download(filesystem, big, tmp_path / "copy" / "big")
    assert (tmp_path / "copy" / "big").read_bytes() == b"x" * BIG
    files.delete(filesystem, [top[0].path, f"{folder}/absent"])
    assert files.list_files(filesystem, folder, recursive=True) == [top[1], big]
    with pytest.raises(FileNotFoundError):
        files.read(filesystem, top[0].path)


def test_create_of_an_existing_file_changes_nothing(s3: Server, tmp_path: Path) -> None:
    for filesystem, folder in (
        (pafs.LocalFileSystem(), f"{tmp_path}/folder"),
        open_uri(s3.uri(f"create{tmp_path}"), "--root"),
    ):
        created: list[bytes] = []

        def create(number: int, filesystem: pafs.FileSystem = filesystem, path: str = f"{folder}/lock") -> None:
            if files.create(filesystem, path, b"%d" % number):
                created.append(b"%d" % number)  # noqa: B023

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(created) == 1
        assert files.read(filesystem, f"{folder}/lock") == created[0]
        assert len(files.list_files(filesystem, folder)) == 1


class Unconditional(BaseHTTPRequestHandler):
    """An S3 server that refuses every condition of a PUT, as older ones do, and keeps the objects in memory."""

    objects: dict[str, bytes]

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if "If-None-Match" in self.headers:
            self._answer(501, b"<Error><Code>NotImplemented</Code><Message>A header</Message></Error>")
        else:
            self.objects[self.path] = content
            self._answer(200, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def unconditional() -> Iterator[Server]:
    """A server without conditional PUT; its objects are those of `Unconditional`."""
    Unconditional.objects = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unconditional)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Server(server.server_port, Path())
    server.shutdown()
    server.server_close()


def test_create_on_s3_without_conditional_put_writes_the_file(unconditional: Server) -> None:
    filesystem, folder = open_uri(unconditional.uri("runs"), "--root")
    for content in (b"one", b"two"):
        assert files.create(filesystem, f"{folder}/lock", content)
        assert Unconditional.objects == {f"/{BUCKET}/runs/lock": content}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_create_on_a_local_filesystem_without_hard_links_is_exclusive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*_: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    local, path = pafs.LocalFileSystem(), f"{tmp_path}/folder/lock"
    assert [files.create(local, path, content) for content in (b"one", b"two")] == [True, False]
    assert Path(path).read_bytes() == b"one"
    assert os.listdir(tmp_path / "folder") == ["lock"]


def test_create_on_a_failing_local_filesystem_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: str) -> None:
        raise OSError(errno.EIO, "failing")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="failing"):
        files.create(pafs.LocalFileSystem(), f"{tmp_path}/lock", b"one")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a b", "a%20b", "a#b?c", "ü/日本", "[x]~{y}", "a&b=c+d", "tab\tx"])
def test_read_of_any_object_name_returns_its_bytes(s3: Server, name: str) -> None:
    with s3.filesystem().open_output_stream(f"{BUCKET}/odd/{name}") as sink:
        sink.write(name.encode())
    filesystem, folder = open_uri(s3.uri("odd"), "--root")
    assert files.read(filesystem, f"{folder}/{name}") == name.encode()


def test_s3_calls_are_one_request_each(s3_proxy: Proxy, tmp_path: Path) -> None:
    filesystem, folder = open_uri(s3_proxy.uri(f"requests{tmp_path}"), "--root")
    before = s3_proxy.count()
    calls = {
        "PUT": [
            lambda: files.write(filesystem, f"{folder}/x", b"1"),
            lambda: files.create(filesystem, f"{folder}/y", b""),
        ],
        "GET": [
            lambda: files.read(filesystem, f"{folder}/x"),
            lambda: list(files.stream(filesystem, File(f"{folder}/x", 1))),
        ],
        "LIST": [
            lambda: files.list_files(filesystem, folder),
            lambda: files.list_files(filesystem, folder, recursive=True),
            lambda: files.list_folders(filesystem, folder),
        ],
        "DELETE-MANY": [lambda: files.delete(filesystem, [f"{folder}/x", f"{folder}/y"])],
    }
    for kind, functions in calls.items():
        for call in functions:
            call()
            after = s3_proxy.count()
            assert after - before == {kind: 1}
            before = after


#: Writes three parts of an upload, each of which takes 0.5 s behind a slow proxy, and prints when it starts.
WRITER = """
import signal, sys
from vlcp_ray.store import files
from vlcp_ray.store.io import open_uri
def stop(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
filesystem, folder = open_uri(sys.argv[1], "--root")
print("starts", flush=True)
files.write(filesystem, folder + "/big", b"x" * {size})
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_s3_write_that_is_interrupted_leaves_the_whole_object_or_none(
    s3_proxy: Proxy, tmp_path: Path, number: signal.Signals
) -> None:
    s3_proxy.set_faults(delay=0.5)
    command = [sys.executable, "-c", WRITER.format(size=BIG), s3_proxy.uri(f"killed{tmp_path}")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    end = time.monotonic() + 60
    while not s3_proxy.count()["MPU-START"] and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.wait(60)
    process.stdout.close()
    assert set(s3_proxy.objects(f"killed{tmp_path}").values()) <= {BIG}


def test_s3_write_whose_parts_are_refused_leaves_no_object(s3_proxy: Proxy, tmp_path: Path) -> None:
    filesystem, folder = open_uri(s3_proxy.uri(f"refused{tmp_path}"), "--root")
    s3_proxy.set_faults(delay=0.3)

    def refuse() -> None:
        while not s3_proxy.count()["MPU-START"]:
            time.sleep(0.02)
        s3_proxy.set_faults(deny=[403, "AccessDenied", "no"])

    thread = threading.Thread(target=refuse)
    thread.start()
    with pytest.raises(PermissionError, match="AccessDenied: no"):
        files.write(filesystem, f"{folder}/big", b"x" * BIG)
    thread.join()
    s3_proxy.set_faults()
    assert s3_proxy.objects(f"refused{tmp_path}") == {}


def test_local_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.write(pafs.LocalFileSystem(), f"{tmp_path}/folder/a", tmp_path / "absent")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_upload_to_other_object_stores_that_fails_deletes_what_was_published(tmp_path: Path) -> None:
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    with pytest.raises(FileNotFoundError):
        files._upload(filesystem, "big", tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
    files._upload(filesystem, "big", b"content")
    assert (tmp_path / "big").read_bytes() == b"content"
