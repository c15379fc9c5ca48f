"""Write text that others have chosen into Markdown: it stays text, and adds no heading, HTML, link or code."""

import html
import re
from typing import Final

from vlcp_ray.monitoring.printable import replace_unseen

_SPECIAL: Final = re.compile(r"([\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_]))")  # _ within a word is itself
_FIRST: Final = re.compile(r"^([-+=:]|\d+(?=[.)]))")


def text(value: object) -> str:
    """Write a value as text of one line."""
    line = _SPECIAL.sub(r"\\\1", html.escape(_line(value), quote=False))
    return _FIRST.sub(lambda match: f"\\{match[0]}" if not match[0][0].isdigit() else f"{match[0]}\\", line)


def code(value: object) -> str:
    """Write a value as code within a line, between more backticks than it has in a row."""
    line = _line(value)
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fenced(value: object, language: str = "") -> str:
    """Write a value as a block of code, between fences that are longer than any in it."""
    fence = "`" * max(3, _longest_run(str(value)) + 1)
    return f"{fence}{language}\n{str(value).strip(chr(10))}\n{fence}"


def _line(value: object) -> str:
    return " ".join(replace_unseen(str(value), " ").split())


def _longest_run(value: str) -> int:
    return max((len(run) for run in re.findall("`+", value)), default=0)
