"""Tests of listing and reading image files: order, errors that make rejected rows, and retries."""

import errno
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import tenacity
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs

from tests.image_sets import by_source, open_set, picture, read_all, write_files
from tests.s3 import BUCKET, Proxy
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.image_files import ImageFile, list_images, read_files
from vlcp_ray.store.files import write
from vlcp_ray.store.io import open_uri


def test_read_files_over_max_bytes_is_too_large(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"train/cat/1.jpg": picture(1), "train/cat/2.jpg": picture(2, size=(200, 200))})
    source = open_set(root, max_bytes=2_000)
    (part,) = source.parts()
    (table,) = source.read(part, ())
    assert by_source(table, "reason") == {"train/cat/1.jpg": "", "train/cat/2.jpg": "too_large"}
    assert table["image"].to_pylist()[1] == b""


def test_read_files_missing_file_is_unreadable(tmp_path: Path) -> None:
    gone = ImageFile(str(tmp_path / "1.jpg"), 10, "train/cat/1.jpg", "train/cat/1.jpg", "cat", "train")
    (table,) = read_files(pafs.LocalFileSystem(), [gone], 100)
    assert table["reason"].to_pylist() == ["unreadable"]
    assert "No such file" in table["detail"][0].as_py()


def test_read_files_of_remote_filesystem_keeps_order(tmp_path: Path) -> None:
    """Filesystems that are not local are read by several threads; this is the same folder through fsspec."""
    content = picture(1)
    root = write_files(tmp_path, {f"train/cat/{i:03d}.jpg": content for i in range(2 * 256 + 9)})
    assert read_all(open_set(f"fsspec+file://{root}")).equals(read_all(open_set(root)))


def test_read_files_of_s3_is_one_request_each(tmp_path: Path, s3_proxy: Proxy) -> None:
    root = write_files(tmp_path, {f"train/cat/{i:02d}.jpg": picture(i) for i in range(20)})
    name = f"images{tmp_path}"
    pafs.copy_files(str(root), f"{BUCKET}/{name}", destination_filesystem=s3_proxy.filesystem())
    source = open_set(s3_proxy.uri(name))
    before = s3_proxy.count()
    table = pa.concat_tables(table for part in source.parts() for table in source.read(part, ()))
    assert table["image"].to_pylist() == [picture(i) for i in range(20)]
    counted = s3_proxy.count() - before
    assert counted["GET"] == 20
    assert counted["HEAD"] == 0


def test_list_images_includes_broken_links_without_hidden_folders(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"train/cat/1.jpg": picture(1), "train/cat/.ipynb_checkpoints/1.jpg": picture(1)})
    (root / "train/cat/2.jpg").symlink_to(root / "nowhere.jpg")
    assert by_source(read_all(open_set(root)), "reason") == {"train/cat/1.jpg": "", "train/cat/2.jpg": "unreadable"}


def test_list_images_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"train/cat/1.jpg": picture(1)})
    with open(os.path.join(os.fsencode(root), b"train/cat/\xff.jpg"), "wb") as file:
        file.write(picture(2))
    with pytest.raises(ConfigError, match="train/cat has file names that are not UTF-8; rename them"):
        read_all(open_set(root))


def test_read_files_link_to_itself_is_unreadable(tmp_path: Path) -> None:
    link = tmp_path / "1.jpg"
    link.symlink_to(link)
    file = ImageFile(str(link), 0, "train/cat/1.jpg", "train/cat/1.jpg", "cat", "train")
    (table,) = read_files(pafs.LocalFileSystem(), [file], 100)
    assert table["reason"].to_pylist() == ["unreadable"]


class Failing(LocalFileSystem):
    """The local filesystem, whose first opens fail with the given errors."""

    cachable = False

    def __init__(self, errors: Sequence[OSError]) -> None:
        super().__init__()
        self.errors = list(errors)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return super()._open(path, mode, **options)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between attempts, which are recorded and not waited."""
    seconds: list[float] = []
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


def read_from(filesystem: Failing, folder: Path) -> pa.Table:
    """Read one file of a failing filesystem."""
    write_files(folder, {"1.jpg": b"bytes"})
    file = ImageFile(str(folder / "1.jpg"), 5, "1.jpg", "train/cat/1.jpg", "cat", "train")
    return pa.concat_tables(read_files(pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), [file], 100))


def test_read_files_retries_transient_errors(tmp_path: Path, waits: list[float]) -> None:
    table = read_from(Failing([OSError(errno.EIO, "busy")] * 3), tmp_path)
    assert table.select(["image", "reason"]).to_pylist() == [{"image": b"bytes", "reason": ""}]
    assert waits == [0.5, 2.0, 8.0]


def test_read_files_transient_error_that_stays_ends_the_run(tmp_path: Path, waits: list[float]) -> None:
    filesystem = Failing([OSError(errno.EIO, "busy")] * 5)
    with pytest.raises(OSError, match="busy"):
        read_from(filesystem, tmp_path)
    assert len(filesystem.errors) == 1
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (PermissionError(errno.EACCES, "denied"), "PermissionError: denied"),
        (OSError(errno.EINVAL, "invalid name"), "OSError: invalid name"),
    ],
)
def test_read_files_permanent_error_of_a_file_is_unreadable_at_once(
    tmp_path: Path, waits: list[float], error: OSError, detail: str
) -> None:
    filesystem = Failing([error] * 2)
    table = read_from(filesystem, tmp_path)
    assert table.select(["reason", "detail"]).to_pylist() == [{"reason": "unreadable", "detail": detail}]
    assert (len(filesystem.errors), waits) == (1, [])


def test_read_files_expired_credentials_end_the_run_at_once(tmp_path: Path, waits: list[float]) -> None:
    filesystem = Failing([OSError("AWS Error UNKNOWN (HTTP status 400): ExpiredToken")] * 2)
    with pytest.raises(OSError, match="ExpiredToken"):
        read_from(filesystem, tmp_path)
    assert (len(filesystem.errors), waits) == (1, [])


def test_read_files_archived_object_is_unreadable_and_a_refusal_ends_the_run(s3_proxy: Proxy, tmp_path: Path) -> None:
    filesystem, folder = open_uri(s3_proxy.uri(f"archive{tmp_path}"), "ingest.source")
    write(filesystem, f"{folder}/1.jpg", b"bytes")
    file = ImageFile(f"{folder}/1.jpg", 5, "1.jpg", "train/cat/1.jpg", "cat", "train")
    s3_proxy.set_faults(deny=[403, "InvalidObjectState", "not valid for its storage class"])
    (table,) = read_files(filesystem, [file], 100)
    detail = "OSError: InvalidObjectState: not valid for its storage class"
    assert table.select(["reason", "detail"]).to_pylist() == [{"reason": "unreadable", "detail": detail}]
    s3_proxy.set_faults(deny=[403, "AccessDenied", "no"])
    with pytest.raises(PermissionError, match="AccessDenied: no"):
        list(read_files(filesystem, [file], 100))


def test_list_images_counts_other_files_by_suffix(tmp_path: Path) -> None:
    names = ("a.jpg", "b.J2K", "c.txt", "d.TXT", "noext", "deeper/e.heic5", ".hidden", ".git/config")
    write_files(tmp_path, dict.fromkeys(names, b""))
    local = pafs.LocalFileSystem()
    other = pafs.SubTreeFileSystem(str(tmp_path.parent), local)
    for filesystem, path in ((local, str(tmp_path)), (other, tmp_path.name)):
        skipped = Counter[str]()
        found = list_images(filesystem, path, True, "", skipped)
        assert [file.base_name for file in found] == ["a.jpg", "b.J2K"]
        assert skipped == {".txt": 2, "no suffix": 1, ".heic5": 1}
