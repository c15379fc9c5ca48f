"""Knows where a model's folder is and what makes it this model and no other."""

import hashlib
from pathlib import Path
from typing import Final

DEMO: Final = "demo/"
_PACKAGE: Final = Path(__file__).parents[1]
_WHOLE_BYTES: Final = 16 * 2**20  # files up to this size are hashed whole, of larger ones both ends and the size


def folder(model: str) -> str:
    """What `from_pretrained` is given: the packaged folder for demo/<name>, else the name itself (hub id or folder)."""
    return str(_PACKAGE / model) if model.startswith(DEMO) else model


def check(model: str, field: str) -> None:
    """Refuse a folder that is not there, before anything is started.

    Raises:
        ValueError: `model` is written as a path, or is part of the demo, and no such folder exists.
    """
    path = Path(folder(model)).expanduser()
    is_path = model.startswith((DEMO, ".", "/", "~")) or model.count("/") != 1  # a hub id is owner/name
    if model.startswith(DEMO) and path.is_dir() and not any(path.rglob("*.safetensors")):
        raise ValueError(f"{field}: the weights of {model} did not travel with this job; send it by vlcp-ray submit")
    if is_path and not path.is_dir():
        raise ValueError(f"{field}: there is no folder {model!r}; give a folder or a hub id such as owner/name")


def identity(model: str) -> str:
    """What a fingerprint holds of a model or table: its contents wherever it lies, or the hub id or URI."""
    path = Path(folder(model)).expanduser()
    if not path.exists():
        return model
    digest = hashlib.blake2b(digest_size=16)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
    for file in files:
        digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_WHOLE_BYTES))
            if file.stat().st_size > _WHOLE_BYTES:
                stream.seek(-_WHOLE_BYTES, 2)
                digest.update(stream.read())
    return digest.hexdigest()
