"""Tests of opening URIs, of retries with errors of real clients of stores, and of content hashes."""

import errno
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tenacity
from pyarrow import fs as pafs

from tests.s3 import BUCKET, KEY, SECRET, Proxy, Server
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import files, io
from vlcp_ray.store.aws import profile_keys
from vlcp_ray.store.io import AccessError, StoreError, content_hash, is_transient, open_uri, retry


def test_open_uri_of_folder_and_file_uri_returns_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in (f"file://{tmp_path}/", str(tmp_path)):
        filesystem, path = open_uri(uri, "--root")
        assert isinstance(filesystem, pafs.LocalFileSystem)
        assert path == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert open_uri("runs/../other", "--root")[1] == str(tmp_path / "other")


def test_open_uri_unknown_to_pyarrow_uses_fsspec(tmp_path: Path) -> None:
    filesystem, path = open_uri("memory://folder/file", "--root")
    with filesystem.open_output_stream(path) as sink:
        sink.write(b"content")
    with filesystem.open_input_stream(path) as stream:
        assert stream.read() == b"content"


def test_open_uri_with_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--root nope://x: .* give a folder or a URI"):
        open_uri("nope://x", "--root")


def test_open_uri_without_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--root s3://: it names no bucket; write s3://bucket/folder"):
        open_uri("s3://", "--root")


@pytest.mark.parametrize("path", ["a/../b", "a//b", "./a"])
def test_open_uri_of_s3_with_empty_parts_or_dots_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"--root .*: a part of the path is empty or dots"):
        open_uri(f"s3://bucket/{path}?region=us-east-1", "--root")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_open_uri_with_an_unknown_option_names_it(scheme: str) -> None:
    with pytest.raises(ValueError, match=r"--root .*: Unexpected query parameter.*: '?nope"):
        open_uri(f"{scheme}://bucket/x?nope=1", "--root")


class Failing:
    """A call that raises the given errors, one per attempt, and then returns the number of attempts."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.attempts = list(errors), 0

    def __call__(self) -> int:
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.attempts


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "WAIT", tenacity.wait_none())
    monkeypatch.setattr(io, "STOP", tenacity.stop_after_attempt(4))


def test_retry_after_transient_errors_returns_the_result(no_wait: None) -> None:
    call = Failing(OSError(errno.ENOSPC, "full"), OSError("AWS Error SLOW_DOWN"), TimeoutError("slow"))
    assert retry(call, "write a") == 4


def test_retry_of_a_lasting_error_raises_store_error_with_the_count(no_wait: None) -> None:
    call = Failing(*[OSError(errno.ENOSPC, "disk full") for _ in range(9)])
    with pytest.raises(StoreError, match=r"cannot write a: failed 4 times in 0 s: .*disk full\. Free space or restore"):
        retry(call, "write a")
    assert call.attempts == 4


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "no permission"),
        OSError(errno.EROFS, "read-only file system"),
        IsADirectoryError(errno.EISDIR, "is a directory"),
        FileExistsError(errno.EEXIST, "exists"),
        NotADirectoryError(errno.ENOTDIR, "not a directory"),
        OSError("AWS Error ACCESS_DENIED during PutObject operation"),
        OSError("AWS Error INVALID_ACCESS_KEY_ID during HeadObject operation"),
        OSError("AWS Error NO_SUCH_BUCKET during CreateBucket operation"),
    ],
    ids=lambda error: str(error)[-30:],
)
def test_retry_of_a_permanent_error_raises_at_once(error: OSError) -> None:
    call = Failing(error)
    with pytest.raises(StoreError, match=r"^cannot write a: "):
        retry(call, "write a")
    assert call.attempts == 1


class RefusingStore(BaseHTTPRequestHandler):
    """An object store that answers every request with the same error."""

    status, code = 403, "AccessDenied"

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = refuse  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def refusing_store() -> Iterator[str]:
    """The address of a server whose answers are those of `RefusingStore`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), RefusingStore)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (403, "SignatureDoesNotMatch"),
        (403, "InvalidAccessKeyId"),
        (400, "ExpiredToken"),
        (404, "NoSuchBucket"),
        (401, "Unauthorized"),
    ],
)
def test_retry_of_a_call_that_s3_refuses_raises_at_once(
    refusing_store: str, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    monkeypatch.setattr(RefusingStore, "status", status)
    monkeypatch.setattr(RefusingStore, "code", code)
    s3 = pafs.S3FileSystem(
        access_key="key", secret_key="secret", endpoint_override=refusing_store, scheme="http", region="us-east-1"
    )
    calls = [lambda: s3.get_file_info(pafs.FileSelector("bucket/folder")), lambda: s3.open_output_stream("bucket/file")]
    if status != 404:
        calls.append(lambda: s3.open_input_stream("bucket/file"))
    for call in calls:
        assert_raises_at_once(call)


#: Answers of S3, and what the error must name.
REFUSALS = {
    "no permission": ([403, "AccessDenied", "no"], "permission: they need to list, read, write and delete"),
    "unknown key": ([403, "InvalidAccessKeyId", "no"], "AWS_ACCESS_KEY_ID"),
    "wrong secret": ([403, "SignatureDoesNotMatch", "no"], "AWS_SECRET_ACCESS_KEY"),
    "expired token": ([400, "ExpiredToken", "old"], "renew the credentials"),
    "invalid token": ([403, "InvalidToken", "no"], "renew the credentials"),
    "other region": ([301, "PermanentRedirect", "elsewhere"], "AWS_REGION"),
    "wrong region": ([400, "AuthorizationHeaderMalformed", "the region is wrong"], "AWS_REGION"),
    "missing bucket": ([404, "NoSuchBucket", "none"], "check its name or create it"),
    "wrong time": ([403, "RequestTimeTooSkewed", "too large"], "set the clock of this machine"),
    "archived object": ([403, "InvalidObjectState", "no"], "restore it, or copy it to another storage class"),
    "disabled bucket": ([403, "AllAccessDisabled", "no"], "ask the provider of the store"),
    "disabled account": ([403, "AccountProblem", "no"], "ask the provider of the store"),
    "another refusal": ([403, "SomethingNew", "no"], "SomethingNew: no; the credentials lack a permission"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_retry_of_any_refused_s3_call_raises_access_error_with_the_fix(s3_proxy: Proxy, kind: str) -> None:
    answer, fix = REFUSALS[kind]
    filesystem, folder = open_uri(s3_proxy.uri("refused"), "--root")
    s3_proxy.set_faults(deny=answer)
    for call in (
        lambda: files.list_files(filesystem, folder),
        lambda: files.list_folders(filesystem, folder),
        lambda: files.read(filesystem, f"{folder}/x"),
        lambda: files.write(filesystem, f"{folder}/x", b"1"),
        lambda: files.create(filesystem, f"{folder}/x", b"1"),
        lambda: files.delete(filesystem, [f"{folder}/x"]),
    ):
        with pytest.raises(AccessError, match=fix):
            retry(call, "use the store")


@pytest.mark.parametrize("answer", [[403, "QuotaExceeded", "full"], [400, "XMinioAdminBucketQuotaExceeded", "full"]])
def test_retry_of_a_call_to_a_full_s3_tries_again(s3_proxy: Proxy, no_wait: None, answer: list[object]) -> None:
    filesystem, folder = open_uri(s3_proxy.uri("full"), "--root")
    s3_proxy.set_faults(deny=answer)
    for call in (
        lambda: files.write(filesystem, f"{folder}/x", b"1"),
        lambda: filesystem.open_output_stream(f"{folder}/x"),
    ):
        with pytest.raises(
            StoreError, match=r"failed 4 times .*QuotaExceeded.*\. Free space or restore access"
        ) as raised:
            retry(call, "write x")
        assert not isinstance(raised.value, AccessError)


def test_fixes_of_local_folders_are_for_errors_of_the_operating_system_only() -> None:
    for error, fix in (
        (PermissionError(errno.EACCES, "no"), "change the rights of the folder"),
        (PermissionError("no"), "the credentials lack a permission"),
    ):
        with pytest.raises(AccessError, match=fix):
            retry(Failing(error), "write a")


def test_retry_of_a_call_with_wrong_credentials_names_them(
    s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # no role of a machine
    uris = {
        s3.uri("x", key="AKIANOTKNOWN"): "AWS_ACCESS_KEY_ID",
        s3.uri("x", secret="wrong"): "AWS_SECRET_ACCESS_KEY",
        s3.uri("x").replace(f"@{BUCKET}/", "@absent/"): "check its name or create it",
        f"s3://{BUCKET}/x?{s3.query}": "no credentials were found",
    }
    for uri, fix in uris.items():
        filesystem, folder = open_uri(uri, "--root")
        with pytest.raises(AccessError, match=fix):
            retry(lambda filesystem=filesystem, folder=folder: files.list_folders(filesystem, folder), "list the root")


def test_credentials_of_the_environment_and_of_a_profile_are_used(
    s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable, value in s3.environment().items():
        monkeypatch.setenv(variable, value)
    filesystem, folder = open_uri(f"s3://{BUCKET}/environment", "--root")
    files.write(filesystem, f"{folder}/x", b"1")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = no\n[mine]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    assert files.read(filesystem, f"{folder}/x") == b"1"
    monkeypatch.setenv("AWS_PROFILE", "sso")
    with pytest.raises(ConfigError, match=r"AWS_PROFILE sso: .*aws configure export-credentials --profile sso"):
        files.read(filesystem, f"{folder}/x")


@pytest.mark.parametrize("content", [b"aws_secret_access_key=PLANTED", b"[a]\nx=PLANTED\nx=PLANTED", b"\xff\xfe"])
def test_broken_file_of_profiles_is_named_and_not_shown(
    content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_bytes(content)
    with pytest.raises(ConfigError, match=r"credentials: .* in AWS_SHARED_CREDENTIALS_FILE") as raised:
        profile_keys()
    assert "PLANTED" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("status", [401, 403])
def test_retry_of_a_call_that_gcs_refuses_raises_at_once(
    refusing_store: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(RefusingStore, "status", status)
    gcs = pafs.GcsFileSystem(anonymous=True, endpoint_override=refusing_store, scheme="http")
    assert_raises_at_once(lambda: gcs.open_input_stream("bucket/file").read())


def test_retry_of_reading_or_writing_a_folder_as_a_file_raises_at_once(tmp_path: Path) -> None:
    local = pafs.LocalFileSystem()
    assert_raises_at_once(lambda: local.open_input_stream(str(tmp_path)))
    assert_raises_at_once(lambda: local.open_output_stream(str(tmp_path)))


def assert_raises_at_once(call: Callable[[], object]) -> None:
    attempts = 0

    def counted() -> object:
        nonlocal attempts
        attempts += 1
        return call()

    with pytest.raises(StoreError, match=r"^cannot use the store: "):
        retry(counted, "use the store")
    assert attempts == 1


def test_retry_of_a_missing_file_raises_it_unchanged() -> None:
    call = Failing(FileNotFoundError("none"))
    with pytest.raises(FileNotFoundError):
        retry(call, "read a")
    assert call.attempts == 1


def test_retry_of_other_errors_raises_them_unchanged() -> None:
    call = Failing(ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        retry(call, "read a")
    assert not is_transient(ZeroDivisionError())
    assert call.attempts == 1


def test_content_hash_depends_on_contents_and_not_on_the_path(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"1234")
        (tmp_path / name / ".hidden").write_text(name)
    assert content_hash(str(tmp_path / "one")) == content_hash(str(tmp_path / "two"))
    (tmp_path / "two" / "weights").write_bytes(b"1235")
    assert content_hash(str(tmp_path / "one")) != content_hash(str(tmp_path / "two"))
    assert content_hash("owner/model") == "owner/model"
