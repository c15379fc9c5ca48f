"""Keep secrets out of everything that others read: passwords and keys in URIs, and those of the environment."""

import os
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

#: What is shown in the place of a secret.
MASK: Final = "***"
#: A URI within a text. The user information may have any character, up to the last `@` of the word or the quoted text.
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:(?:(?!://)[^\s\"`<>])*@)?[^\s\"'`<>|,()\[\]{}\\]+")
_WHOLE_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
#: `host:port`, also with an address of IPv6.
_WITH_PORT: Final = re.compile(r".*:\d*|\[.*")
_NO_USER_BEFORE_A_PORT: Final = ("s3", "gs", "gcs")  # schemes whose host is a bucket, which has no port
#: Options of a query whose value is a secret or belongs to a signature: tokens, keys, signed URLs of S3, GCS and Azure.
_SECRET_OPTION: Final = re.compile(
    r"token|secret|passw|passphrase|^pass$|pwd|^pw$|credential|signature|^sig$|key|^sas|^auth|jwt|bearer|^code$|"
    r"^x-amz-|^x-goog-|^connection_string$",
    re.I,
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
#: Variables that hold the place of a secret, or a folder.
_PLACE_VARIABLE: Final = re.compile(r"CREDENTIALS$|_FILE$|_PATH$|_DIR$|^(OLD)?PWD$")
_MIN_SECRET: Final = 6  # characters: a shorter one would hide harmless words

#: Secrets of the URIs that this process has opened: an error may repeat one of them alone.
_opened: set[str] = set()


def strip_secrets(uri: str) -> str:
    """Return a URI without its secrets, as it is hashed: a new key makes no new artifact. Others are unchanged."""
    return _change_uri(uri, "") if "://" in uri else uri


def public(value: Any) -> Any:
    """Return a setting, or settings, with `***` in the place of the secrets of URIs and of the environment."""
    if isinstance(value, str):
        return redact(_change_uri(value, MASK) if _WHOLE_URI.fullmatch(value) else value)
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
    found = {name.upper(): value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name.upper())}
    return {
        value
        for name, value in found.items()
        if len(value) >= _MIN_SECRET
        and not (_PLACE_VARIABLE.search(name) and value.startswith(("/", "~", ".")))
        and not os.path.exists(value)
    }


def _change_uri(uri: str, mask: str) -> str:
    scheme, _, rest = uri.partition("://")
    authority, rest = _split_authority(scheme.lower(), rest)
    rest, mark, fragment = rest.partition("#")
    path, question, query = rest.partition("?")
    options, fragment = _change_options(query, mask), _change_options(fragment, mask)
    changed = _change_user(scheme.lower(), authority, mask)
    return f"{scheme}://{changed}{path}{question if options else ''}{options}{mark if fragment else ''}{fragment}"


def _split_authority(scheme: str, rest: str) -> tuple[str, str]:
    """Split what follows `://` into user and host, and the rest.

    A password that was not percent-encoded may contain `/`, `?` and `#`: where a colon that is none of a port comes
    before them, and `@` after them, the password ends at the last `@`.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    base = scheme.rpartition("+")[2]
    is_host = "@" in authority or ":" not in authority
    is_host = is_host or (bool(_WITH_PORT.fullmatch(authority)) and base not in _NO_USER_BEFORE_A_PORT)
    if not is_host and "@" in rest:
        user, _, host = rest.rpartition("@")
        authority = f"{user}@{re.split('[/?#]', host, maxsplit=1)[0]}"
    return authority, rest[len(authority) :]


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
    """Change the options of a query, which `&` or `;` separates."""
    options = re.split("([&;])", query)  # an option, the character after it, the next option ...
    signed = _signed_options(query)
    kept = []
    for option, end in zip(options[::2], [*options[1::2], ""], strict=True):
        name, _, value = option.partition("=")
        is_secret = bool(value) and _is_secret(name, value, signed)
        if not is_secret or mask:
            kept.append((f"{name}={mask}" if is_secret else option, end))
    text = "".join(option + end for option, end in kept)
    return text if len(kept) == len(options[::2]) else text.rstrip("&;")


def _signed_options(query: str) -> frozenset[str]:
    """Return the names of the options that belong to the signature of a query."""
    return _SIGNED if re.search(r"(^|[&;])sig=", query, re.I) else frozenset()


def _is_secret(name: str, value: str, signed: frozenset[str]) -> bool:
    name, inner = unquote(name), unquote(value)  # another URI, as of an endpoint, may have a password of its own
    return bool(_SECRET_OPTION.search(name)) or name.lower() in signed or ("://" in inner and has_secret(inner))


def _secrets(uri: str) -> set[str]:
    scheme, _, rest = uri.partition("://")
    authority, rest = _split_authority(scheme.lower(), rest)
    rest, _, fragment = rest.partition("#")
    found = set()
    if _change_user(scheme.lower(), authority, MASK) != authority:
        user = authority.rpartition("@")[0]
        name, _, password = user.partition(":")
        found |= {password} if scheme.lower() in _USER_IS_CONTAINER else {name, password}
    for query in (rest.partition("?")[2], fragment):
        for option in re.split("[&;]", query):
            name, _, value = option.partition("=")
            if value and _is_secret(name, value, _signed_options(query)):
                found |= _secrets(unquote(value)) if "://" in unquote(value) else {value}
    return {form for secret in found if secret for form in (secret, unquote(secret))}
