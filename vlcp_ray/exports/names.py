"""Name the folders and files of an export after classes and images, so that every system can hold them."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from vlcp_ray.monitoring.printable import replace_unseen

_MAX_BYTES: Final = 150  # of 255 that file systems allow, with room for a prefix, a hash and a suffix
#: Characters that Windows or a path does not allow, besides those that cannot be seen.
_FORBIDDEN: Final = re.compile(r'[<>:"/\\|?*]')
#: Names of devices in Windows, with any extension.
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?", re.I)
#: Files with which `datasets` describes the images of a folder.
_METADATA: Final = re.compile(r"metadata\.(jsonl|csv|parquet)", re.I)
_NUMBERED: Final = re.compile(r"^\d{4,} ")
_HASHED: Final = re.compile(r"-[0-9a-f]{12}$")
_IMAGE_SUFFIX: Final = re.compile(r"\.(jpe?g|jfif|png|webp|bmp|gif|tiff?|p[bgnp]m|heic|avif|img)$", re.I)


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Name a folder for every label: its class name, with the label in front where it cannot be one as it is.

    That is where another class has the same name for a file system that ignores case or Unicode forms, and where the
    name has characters that a path cannot have.
    """
    count = Counter(_key(name) for name in class_names)
    return [
        name if _is_safe(name, _NUMBERED) and count[_key(name)] == 1 else f"{label:04d} {_clean(name)}".rstrip(". ")
        for label, name in enumerate(class_names)
    ]


def file_names(image_ids: Iterable[str]) -> dict[str, str]:
    """Name a file, without its suffix, for every image: its id with _ for slashes and dots; a hash keeps it unique."""
    stems = {image_id: _stem(image_id) for image_id in image_ids}
    count = Counter(_key(stem) for stem in stems.values())
    return {
        image_id: stem if _is_safe(stem, _HASHED) and count[_key(stem)] == 1 else f"{_clean(stem)}-{_hash(image_id)}"
        for image_id, stem in stems.items()
    }


def _stem(image_id: str) -> str:
    return _IMAGE_SUFFIX.sub("", image_id).replace("/", "_").replace(".", "_")


def _is_safe(name: str, changed: re.Pattern[str]) -> bool:
    """Return whether a name can stay as it is: also those that look like changed ones cannot."""
    is_taken = _RESERVED.fullmatch(name) or _METADATA.fullmatch(_key(name))
    return name == _clean(name) and not is_taken and not changed.search(name)


def _clean(name: str) -> str:
    """Replace what a path cannot have; `datasets` ignores what begins with a dot or with two underscores."""
    name = _FORBIDDEN.sub("_", replace_unseen(name.encode("utf-8", "replace").decode(), "_"))
    name = name.encode()[:_MAX_BYTES].decode("utf-8", "ignore").strip(" ").rstrip(". ")
    if name.startswith((".", "__")):
        name = f"_ {name.lstrip('._')}"
    return name or "_"


def _key(name: str) -> str:
    """Return what a file system that ignores case and Unicode forms compares."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
