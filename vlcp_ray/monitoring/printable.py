"""Show text of strangers, such as names of files and labels, so that it can neither move a terminal nor mislead."""

import unicodedata
from typing import Final

#: Control characters (escape sequences of terminals), invisible and reordering ones, lone surrogates, ends of lines.
_ESCAPED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT: Final = "\u200c\u200d"  # they join letters in Persian and Hindi, and the parts of an emoji


def printable(text: str, keep: str = "") -> str:
    r"""Escape the characters that a reader cannot see: `\x1b`, `\n`, `\u202e`.

    Args:
        keep: of such characters those that stay, as `"\n"` where a text has several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if _is_escaped(character, keep) else character for character in text
    )


def _is_escaped(character: str, keep: str) -> bool:
    return character not in keep and character not in _KEPT and unicodedata.category(character) in _ESCAPED
