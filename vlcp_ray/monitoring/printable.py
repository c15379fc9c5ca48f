"""Show text of strangers, such as names of files and labels, so that it can neither move a terminal nor mislead."""

import unicodedata
from typing import Final

#: Control characters (escape sequences of terminals), invisible and reordering ones, lone surrogates, ends of lines.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT: Final = "\u200c\u200d"  # they join letters in Persian and Hindi, and the parts of an emoji


def printable(text: str, keep: str = "") -> str:
    r"""Escape the characters that a reader cannot see: `\x1b`, `\n`, `\u202e`.

    Args:
        keep: of such characters those that stay, as `"\n"` where a text has several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if is_unseen(character) and character not in keep else character
        for character in text
    )


def replace_unseen(text: str, replacement: str) -> str:
    """Replace each character that a reader cannot see."""
    return "".join(replacement if is_unseen(character) else character for character in text)


def is_unseen(character: str) -> bool:
    """Return whether a character has no shape of its own, or changes the order of others."""
    return character not in _KEPT and unicodedata.category(character) in _UNSEEN
