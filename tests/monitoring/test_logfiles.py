"""Tests of log files: log lines, warnings and errors, and a file for every attempt."""

import logging
import time
import warnings
from pathlib import Path

import pytest

from vlcp_ray.monitoring import logfiles
from vlcp_ray.monitoring.logfiles import log_note, logged
from vlcp_ray.monitoring.progress import log_line
from vlcp_ray.store.artifact import Store


def files(root: Path) -> list[str]:
    return [file.read_text() for file in sorted((root / "logs" / "digits" / "pair").iterdir())]


@pytest.mark.filterwarnings("default")
def test_logged_writes_lines_and_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logged(Store.at(str(tmp_path)), "digits", "pair", '{"ray": "2.60.0"}'):
        log_line("pair", "640 rows")
        warnings.warn("old option", DeprecationWarning, stacklevel=1)
        logging.getLogger("library").warning("this is slow")
    log_line("pair", "after its end")
    (log,) = files(tmp_path)
    first, line, *_ = log.splitlines()
    assert '{"ray": "2.60.0"}' in first
    assert first[:2] == "20"  # the line begins with the time
    assert line.endswith("pair                         640 rows")
    assert "DeprecationWarning: old option" in log
    assert "WARNING library this is slow" in log
    assert log.splitlines()[-1].endswith("pair: done")
    assert "640 rows" in capsys.readouterr().out
    assert logging.getLogger("vlcp_ray").level == logging.NOTSET


def test_logged_error_writes_its_traceback_and_notes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="class 7") as raised, logged(Store.at(str(tmp_path)), "digits", "pair", ""):
        raise ValueError("class 7 has 3 images")
    assert log_note(raised.value).startswith(f" (log: {tmp_path}/logs/digits/pair/2")
    assert log_note(ValueError()) == ""
    (log,) = files(tmp_path)
    assert "Traceback (most recent call last)" in log
    assert "ValueError: class 7 has 3 images" in log
    monkeypatch.setattr("vlcp_ray.monitoring.logfiles.time.strftime", lambda *_: "9999.log")
    with logged(Store.at(str(tmp_path)), "digits", "pair", ""):
        pass
    assert len(files(tmp_path)) == 2  # the next attempt has its own


def test_logged_copies_the_log_while_the_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfiles, "_INTERVAL", 0.02)
    with logged(Store.at(str(tmp_path)), "digits", "pair", ""):
        log_line("pair", "under way")
        while not list(tmp_path.rglob("*.log")) or "under way" not in files(tmp_path)[0]:
            time.sleep(0.01)
