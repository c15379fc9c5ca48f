"""Group the members of a tar into the samples of WebDataset: neighbours whose names have one key."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from vlcp_ray.sources.image_files import SUFFIXES
from vlcp_ray.sources.tars import Content, Member, Tar

#: Bytes of a cls or json member; a longer one is broken.
MAX_LABEL_BYTES: Final = 2**20
_EXTENSION: Final = re.compile(r"([a-z_][a-z0-9_-]*\.)*[^.]*")
_LABELS: Final = ("cls", "json")
_READ: Final = SUFFIXES | {f".{extension}" for extension in _LABELS}
_MAX_MEMBERS: Final = 64  # of a sample that are kept; others are ignored


@dataclass(frozen=True)
class Sample:
    """The members of a key by their extension; `name` is the key, with a number if the tar had the key before."""

    key: str
    name: str
    members: dict[str, Member] = field(default_factory=dict)

    def image(self) -> Member | None:
        """Return the member that is the image: of `jpg`, or of the only one like `input.jpg`."""
        exact = next((m for ext, m in self.members.items() if f".{ext}" in SUFFIXES), None)
        others = [m for ext, m in self.members.items() if _is_picture(ext)]
        return exact or (others[0] if len(others) == 1 else None)

    def is_labelled(self) -> bool:
        """Return whether the members are those of a sample, and not single files of any archive.

        There is a cls; or a json, or anything else, belongs to an image.
        """
        pictures = sum(map(_is_picture, self.members))
        is_pair = len(self.members) > 1 and ("json" in self.members or 0 < pictures < len(self.members))
        return "cls" in self.members or is_pair

    def contents(self, max_image: int) -> list[Content]:
        """Return where the labels are, and the image if it has at most `max_image` bytes."""
        read = [(self.members.get(name), MAX_LABEL_BYTES) for name in _LABELS] + [(self.image(), max_image)]
        found = ((member.content, most) for member, most in read if member is not None)
        return [content for content, most in found if content is not None and content.size <= most]


def samples(tar: Tar, max_image: int = -1) -> Iterator[Sample]:
    """Group neighbouring members whose names agree up to the first dot into samples.

    Hidden members are left out, as in folders: macOS writes ._0.jpg in front of 0.jpg.

    Until the next sample is asked for, the tar can read the labels and the image of this one, of a gzip file, too.

    Args:
        max_image: the most bytes of an image that is to be read; -1: none is.
    """
    names = _Names()
    sample: Sample | None = None
    for member in (member for member in tar if not _is_hidden(member.name)):
        key, extension = _split_name(member.name)
        if member.content is None and f".{extension}" not in SUFFIXES:
            continue  # a device or a link to nothing that is no image
        if sample is None or key != sample.key or extension in sample.members:
            if sample:
                yield sample
            sample = Sample(key, names.of(key))
        if len(sample.members) < _MAX_MEMBERS:
            sample.members[extension] = member
            if tar.is_packed:
                tar.keep(sample.contents(max_image))
    if sample:
        yield sample


class _Names:
    """The names of samples: their key, with a number where the tar had the key before."""

    def __init__(self) -> None:
        self.seen: set[int] = set()  # digests, so that memory is some 70 bytes for each sample
        self.repeated: Counter[int] = Counter()

    def of(self, key: str) -> str:
        digest = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        if digest in self.seen:
            self.repeated[digest] += 1
        self.seen.add(digest)
        return f"{key} again {self.repeated[digest]}" if digest in self.repeated else key


def _split_name(name: str) -> tuple[str, str]:
    """Split a member's path into WebDataset's key and extension, at the first dot after the folder.

    At the last dot where an image or a label has numbers or words before its suffix: 22.05.png is not of the sample 22.
    """
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    is_read = f".{extension.rpartition('.')[2].lower()}" in _READ
    if is_read and not _EXTENSION.fullmatch(extension.lower()):
        stem, _, extension = file.rpartition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _is_hidden(name: str) -> bool:
    """Return whether a part of a path begins with a dot, and is no `.` or `..`."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _is_picture(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in SUFFIXES
