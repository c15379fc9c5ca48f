"""Keep secrets out of everything that others read: passwords and keys in URIs, and those of the environment."""

import os
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

#: What is shown in the place of a secret.
MASK: Final = "***"
#: A URI within a text: scheme, user information and the rest up to a character that ends it.
_URI: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s\"'`<>|,;()\[\]{}\\]+)")
#: Options of a query whose value is a secret or belongs to a signature: tokens, keys, signed URLs of S3, GCS and Azure.
_SECRET_OPTION: Final = re.compile(
    r"token|secret|passw|pwd|credential|signature|^sig$|key|^sas|^auth|^x-amz-|^x-goog-|^connection_string$", re.I
)
#: The other options of a signed URL of Azure, which change with its signature.
_SIGNED: Final = frozenset(
    "sv ss srt sp se st spr sr sip ske skoid sks skt sktid skv sdd saoid suoid scid".split()  # noqa: SIM905
)
#: Schemes in which the user alone is no name but a secret, and those in which it names a container.
_USER_IS_SECRET: Final = ("http", "https", "ftp", "s3", "gs", "gcs")
_USER_IS_CONTAINER: Final = ("abfs", "abfss", "wasb", "wasbs", "adl")
#: Variables of the environment that hold secrets.
_SECRET_VARIABLE: Final = re.compile(
    r"TOKEN|SECRET|PASSW|PWD$|CREDENTIAL|API_?KEY|ACCESS_?KEY|ACCOUNT_?KEY|PRIVATE_?KEY|_KEY$|SAS$|CONNECTION_STRING"
)
_MIN_SECRET: Final = 6  # characters: a shorter one would hide harmless words

#: Secrets of the URIs that this process has opened: an error may repeat one of them alone.
_opened: set[str] = set()


def strip_secrets(uri: str) -> str:
    """Return a URI without its secrets, as it is hashed: a new key makes no new artifact. Others are unchanged."""
    return _change_uri(uri, "") if "://" in uri else uri


def public(value: Any) -> Any:
    """Return a setting, or settings, with `***` in the place of the secrets of URIs and of the environment."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: public(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(public(inner) for inner in value)
    return value


def redact(text: str) -> str:
    """Replace the secrets in a text by `***`: those of URIs in it or opened before, and of the environment."""
    text = _URI.sub(lambda match: _change_uri(match[0], MASK), text) if "://" in text else text
    for secret in sorted(_opened | _environment(), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def has_secret(uri: str) -> bool:
    """Return whether a URI has a password, a key or a signature."""
    return "://" in uri and bool(_secrets(uri))


def remember(uri: str) -> None:
    """Hide the secrets of this URI from now on, also where a text has them alone."""
    _opened.update(secret for secret in _secrets(uri) if len(secret) >= _MIN_SECRET)


def _environment() -> set[str]:
    """Return the secrets of the environment; the path of a file with a secret is none."""
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name.upper())}
    return {value for value in found if len(value) >= _MIN_SECRET and not value.startswith(("/", "~", "."))}


def _change_uri(uri: str, mask: str) -> str:
    scheme, _, rest = uri.partition("://")
    rest, mark, fragment = rest.partition("#")
    rest, question, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    authority = _change_user(scheme.lower(), authority, mask)
    options = _change_options(query, mask)
    return f"{scheme}://{authority}{slash}{path}{question if options else ''}{options}{mark}{fragment}"


def _change_user(scheme: str, authority: str, mask: str) -> str:
    user, at, host = authority.rpartition("@")
    name, colon, password = user.partition(":")
    base = scheme.rpartition("+")[2]
    if not at or not (password or base in _USER_IS_SECRET):
        return authority
    if base in _USER_IS_CONTAINER:
        return f"{name}{colon and mask and colon}{mask}@{host}"
    return f"{mask}@{host}" if mask else host


def _change_options(query: str, mask: str) -> str:
    options = [option.partition("=") for option in query.split("&")] if query else []
    names = {name.lower() for name, _, _ in options}
    signed = _SIGNED if "sig" in names else frozenset[str]()
    kept = []
    for name, equals, value in options:
        if value and _is_secret(name, value, signed):
            if mask:
                kept.append(f"{name}={mask}")
            continue
        kept.append(f"{name}{equals}{value}")
    return "&".join(kept)


def _is_secret(name: str, value: str, signed: frozenset[str]) -> bool:
    inner = unquote(value)  # another URI, as of an endpoint, may have a password of its own
    return bool(_SECRET_OPTION.search(name)) or name.lower() in signed or ("://" in inner and has_secret(inner))


def _secrets(uri: str) -> set[str]:
    scheme, _, rest = uri.partition("://")
    rest, _, query = rest.partition("#")[0].partition("?")
    authority = rest.partition("/")[0]
    found = set()
    if _change_user(scheme.lower(), authority, MASK) != authority:
        user = authority.rpartition("@")[0]
        name, _, password = user.partition(":")
        found |= {password} if scheme.lower() in _USER_IS_CONTAINER else {name, password}
    signed = _SIGNED if re.search(r"(^|&)sig=", query, re.I) else frozenset[str]()
    for option in query.split("&"):
        name, _, value = option.partition("=")
        if value and _is_secret(name, value, signed):
            found |= _secrets(unquote(value)) if "://" in unquote(value) else {value}
    return {form for secret in found if secret for form in (secret, unquote(secret))}
