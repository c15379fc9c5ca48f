"""Tests of the names of folders and files: unique on every system, and never outside the target."""

import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

import pytest

from vlcp_ray.exports.names import file_names, folder_names

HOSTILE = (
    "..", ".", "", "/etc/passwd", "../../x", "a/b", "a\\b", "C:x", "C:\\x", "con", "CON", "nul.txt", "com1", "LPT9.x",
    "aux.",
    "x.", "x ", "x", "X", " x", "\u00e9", "e\u0301", "\u00c9", "stra\u00dfe", "STRASSE", "fi",
    "\ufb01", "a:b", "a?b",
    "a*b", "a\nb", "a\x00b", "a\u202eb", "0001 x", "0000 ..", "y" * 300, "y" * 299, "\u732b" * 200,
    "-rf", "~", ".hidden",
    "__hidden", "\ud800", "a_b", "a.b", "a/b.jpg", "a/b.png", "a_b-0123456789ab",
    "metadata.jsonl", "Metadata.CSV", "metadata.parquet",
)  # fmt: skip


def key(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def check(names: list[str]) -> None:
    assert len({key(name) for name in names}) == len(names)
    for name in names:
        assert name == PurePosixPath(name).name == PureWindowsPath(name).name
        assert len(name.encode()) <= 200
        assert not PureWindowsPath(name).is_reserved()
        assert name.strip(". ") == name
        assert name.isprintable()
        assert not name.startswith("__")
        assert not name.lower().startswith("metadata.")


def test_folder_names_are_unique_and_inside_the_target() -> None:
    check(folder_names(HOSTILE))


def test_file_names_are_unique_and_inside_the_target() -> None:
    names = file_names(HOSTILE)
    check(list(names.values()))
    assert list(names) == list(HOSTILE)
    assert not any("." in name for name in names.values())


def test_names_with_unseen_characters_get_others() -> None:
    unseen = ["a\u202eb", "a\u061cb", "a\u200bb", "a\ufeffb", "a\x1bb"]
    assert folder_names(unseen) == [f"{label:04d} a_b" for label in range(5)]


def test_names_that_can_be_folders_stay() -> None:
    names = ["n01440764", "English springer", "chat \u00e9l\u00e9gant", "St. Bernard", "C++", "hen-of-the-woods"]
    assert folder_names(names) == names
    assert folder_names(["crane", "crane", "x"]) == ["0000 crane", "0001 crane", "x"]


@pytest.mark.parametrize(
    ("image_id", "name"),
    [("synthetic-0000-0001", "synthetic-0000-0001"), ("train/n01/a_1.JPEG", "train_n01_a_1"), ("a.1.png", "a_1")],
)
def test_file_name_is_that_of_the_image(image_id: str, name: str) -> None:
    assert file_names([image_id]) == {image_id: name}
