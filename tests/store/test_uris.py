"""Tests of secrets in URIs and in the environment: what is hashed, what is shown, what stays as it is."""

import pytest

from vlcp_ray.store import uris
from vlcp_ray.store.uris import has_secret, public, redact, remember, strip_secrets

WITHOUT = (
    "runs",
    "/data/a@b:c",
    "s3://bucket/folder",
    "s3://bucket/folder?region=eu-west-1&endpoint_override=http://127.0.0.1:8333&scheme=http",
    "hf://datasets/owner/name@main/data",
    "gs://bucket/a?x=y",
    "abfss://container@account.dfs.core.windows.net/a",
    "file:///data/a b#c",
    "hdfs://user@host:8020/a",
    "owner/name",
    "http://127.0.0.1:8333/a?email=me@x.org",
    "http://[::1]:8333/a@b",
    "https://h/a?b=1;c=2#part-3",
    "hf://datasets/owner/name@main?x=a:b",
)
#: A URI, what is hashed of it and what is shown of it.
WITH = (
    ("s3://KEYKEY:SECRET%2F1@bucket/a", "s3://bucket/a", "s3://***@bucket/a"),
    (
        "s3://KEYKEY:SECRET@bucket/a?region=x&endpoint_override=http://h:1",
        "s3://bucket/a?region=x&endpoint_override=http://h:1",
        "s3://***@bucket/a?region=x&endpoint_override=http://h:1",
    ),
    ("s3://b/a?access_key=KEYKEY&secret_key=SECRET", "s3://b/a", "s3://b/a?access_key=***&secret_key=***"),
    ("https://user:SECRET@host/a?token=SECRET#x", "https://host/a#x", "https://***@host/a?token=***#x"),
    ("https://ghp_SECRET@host/a", "https://host/a", "https://***@host/a"),
    ("https://h/a?sv=2024&se=2026&sig=SECRET&x=1", "https://h/a?x=1", "https://h/a?sv=***&se=***&sig=***&x=1"),
    (
        "https://h/a?X-Amz-Credential=KEYKEY&X-Amz-Date=2026&X-Amz-Signature=SECRET",
        "https://h/a",
        "https://h/a?X-Amz-Credential=***&X-Amz-Date=***&X-Amz-Signature=***",
    ),
    ("abfs://box:SECRET@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a", None),
    ("fsspec+sftp://user:SECRET@host/a", "fsspec+sftp://host/a", "fsspec+sftp://***@host/a"),
    ("s3://b/a?endpoint_override=http%3A%2F%2Fu%3ASECRET%40h", "s3://b/a", "s3://b/a?endpoint_override=***"),
    ("S3://KEYKEY:SE@CRET@bucket/a", "S3://bucket/a", "S3://***@bucket/a"),
    ("s3://KEYKEY:x/SECRET@bucket/a?region=x", "s3://bucket/a?region=x", "s3://***@bucket/a?region=x"),
    ("s3://KEYKEY:1/SECRET@bucket/a", "s3://bucket/a", "s3://***@bucket/a"),
    ("s3://KEYKEY:x?SECRET#y@bucket/a", "s3://bucket/a", "s3://***@bucket/a"),
    ("s3://KEYKEY:x,SECRET;(y)[z]{}'|@bucket/a", "s3://bucket/a", "s3://***@bucket/a"),
    ("https://h/a#access_token=SECRET", "https://h/a", "https://h/a#access_token=***"),
    ("https://h/a?pass=SECRET&x=1", "https://h/a?x=1", "https://h/a?pass=***&x=1"),
    ("https://h/a?x=1;token=SECRET", "https://h/a?x=1", "https://h/a?x=1;token=***"),
    ("https://h/a?%74oken=SECRET&jwt=SECRET&pw=SECRET&code=SECRET&bearer=SECRET", "https://h/a", None),
)


@pytest.mark.parametrize("uri", WITHOUT)
def test_uri_without_secrets_is_hashed_and_shown_as_it_is(uri: str) -> None:
    assert strip_secrets(uri) == public(uri) == uri
    assert not has_secret(uri)


@pytest.mark.parametrize(("uri", "hashed", "shown"), WITH)
def test_uri_with_secrets_is_hashed_without_and_shown_masked(uri: str, hashed: str, shown: str | None) -> None:
    assert has_secret(uri)
    assert strip_secrets(uri) == hashed
    if shown:
        assert redact(uri) == shown
    assert "SECRET" not in redact(uri)


@pytest.mark.parametrize("text", ["cannot open '{}': no", 'x="{}"', "<{}>", "--root {} --to pair", "a, {}, b", "({})"])
@pytest.mark.parametrize("uri", [uri for uri, _, _ in WITH])
def test_redact_finds_uris_within_a_text(text: str, uri: str) -> None:
    shown = redact(text.format(uri))
    assert "SECRET" not in shown
    assert "KEYKEY" not in shown
    start, end = text.split("{}")
    assert shown.startswith(start)
    assert shown.endswith(end)


def test_redact_hides_the_secrets_of_the_environment_and_no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING", "WANDB_API_KEY"):
        monkeypatch.setenv(name, f"planted-{name}")
        assert redact(f"a planted-{name} b") == "a *** b"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/wJalr/planted")
    assert redact("a /wJalr/planted b") == "a *** b"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert redact("/home/me/key.json is false") == "/home/me/key.json is false"


def test_remembered_secret_is_hidden_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uris, "_opened", set())
    remember("s3://AKIAPLANTED:abc%2Fdef%2Bg@bucket/a?region=x")
    assert redact("key AKIAPLANTED, abc/def+g or abc%2Fdef%2Bg in bucket") == "key ***, *** or *** in bucket"


def test_remember_leaves_words_shorter_than_six_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uris, "_opened", set())
    remember("s3://sixsix:fives@bucket/a")
    assert redact("sixsix and fives") == "*** and fives"


def test_public_of_settings_keeps_their_shape() -> None:
    settings = {"a": ("x", 's3://KEYKEY:a"SECRET@b'), "b": {"c": [1, None]}}
    assert public(settings) == {"a": ("x", "s3://***@b"), "b": {"c": [1, None]}}
