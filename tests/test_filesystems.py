"""Whether folders and URIs become filesystems, and unknown ones a sentence."""

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from vlcp_ray.filesystems import open_uri


def test_folders_and_uris_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in (f"file://{tmp_path}/", str(tmp_path)):
        filesystem, path = open_uri(uri, "--root")
        assert isinstance(filesystem, pafs.LocalFileSystem)
        assert path == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert open_uri("runs/../other", "--root")[1] == str(tmp_path / "other")


def test_what_pyarrow_does_not_know_fsspec_may(tmp_path: Path) -> None:
    filesystem, path = open_uri("memory://folder/file", "--root")
    with filesystem.open_output_stream(path) as sink:
        sink.write(b"content")
    with filesystem.open_input_stream(path) as stream:
        assert stream.read() == b"content"


def test_an_unknown_scheme_is_told() -> None:
    with pytest.raises(ValueError, match=r"--root nope://x: .* give a folder or a URI"):
        open_uri("nope://x", "--root")


def test_a_scheme_alone_is_no_place() -> None:
    with pytest.raises(ValueError, match=r"--root s3://: it names no bucket; write s3://bucket/folder"):
        open_uri("s3://", "--root")
