"""Tests of showing text of strangers: in lines of a run, in log files, and in the error of a command."""

import io
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlcp_ray.cli import main
from vlcp_ray.monitoring.logfiles import logged
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.monitoring.progress import LOG, Progress, View, log_line
from vlcp_ray.store.artifact import Store

HOSTILE = "\x1b[2J\x1b]0;title\x07 \u202egnp\u2066 new\nline\r \x9b31m \u2028 \ud800 \u200b\ufeff"


def is_safe(text: str) -> bool:
    """Return whether a text moves nothing, hides nothing and has one line."""
    return all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def test_printable_of_names_in_all_languages_is_unchanged() -> None:
    for name in ("Zürich's 東京.png", "क्\u200dष", "👩\u200d🔬", "a\u00a0b", "c:\\x1b"):
        assert printable(name) == name


def test_printable_escapes_what_cannot_be_seen() -> None:
    assert printable("\x1b[31m\n\u202e") == r"\x1b[31m\n\u202e"
    assert is_safe(printable(HOSTILE))
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@given(st.text(st.characters(exclude_characters="\u200c\u200d")))
def test_printable_of_any_text_is_one_visible_line(text: str) -> None:
    assert is_safe(printable(text))


def test_log_line_with_control_characters_is_escaped_in_terminal_and_log_file(tmp_path: Path) -> None:
    stream = io.StringIO()
    with logged(Store.at(str(tmp_path)), "job", "ingest", f"header {HOSTILE}"):
        log_line("ingest", HOSTILE, stream)
        LOG.warning("name %s", HOSTILE)
        logging.getLogger("other").warning("2026-01-01 forged\n2026-01-01 forged")
    (line, end) = stream.getvalue().split("\n")
    assert (is_safe(line), end) == (True, "")
    lines = next(tmp_path.rglob("*.log")).read_text().split("\n")
    assert all(map(is_safe, lines))
    assert "    2026-01-01 forged" in lines


def test_log_of_an_error_with_control_characters_is_escaped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="title"), logged(Store.at(str(tmp_path)), "job", "ingest", "header"):
        raise ValueError(HOSTILE)
    lines = next(tmp_path.rglob("*.log")).read_text().split("\n")
    assert all(map(is_safe, lines))
    assert "    Traceback (most recent call last):" in lines


def test_note_with_control_characters_is_escaped() -> None:
    progress = Progress("pair", 10, "rows", view=View(io.StringIO()))
    progress.add(1, note=HOSTILE)
    assert is_safe(str(progress.snapshot()))


def test_error_of_a_command_with_control_characters_is_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.toml"
    job.write_text('name = "x"\n')
    assert main(["plan", str(job), "--set", "ingest.\x1b[31mred\n=1"]) == 2
    (line, end) = capsys.readouterr().err.split("\n")
    assert (is_safe(line), end) == (True, "")
    assert r"\x1b[31mred" in line
