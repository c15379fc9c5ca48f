"""Whether a stage's log has what was told, warned of and gone wrong, a file for every attempt."""

import logging
import time
import warnings
from pathlib import Path

import pytest

from vlcp_ray import logs
from vlcp_ray.logs import logged, place
from vlcp_ray.progress import say
from vlcp_ray.store import Store


def files(root: Path) -> list[str]:
    return [file.read_text() for file in sorted((root / "logs" / "digits" / "pair").iterdir())]


@pytest.mark.filterwarnings("default")
def test_what_is_told_and_warned_of_is_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logged(Store.at(str(tmp_path)), "digits", "pair", '{"ray": "2.60.0"}'):
        say("pair", "640 rows")
        warnings.warn("old option", DeprecationWarning, stacklevel=1)
        logging.getLogger("library").warning("this is slow")
    say("pair", "said after its end")
    (log,) = files(tmp_path)
    first, told, *_ = log.splitlines()
    assert '{"ray": "2.60.0"}' in first
    assert first[:2] == "20"  # it begins with the time
    assert told.endswith("pair                         640 rows")
    assert "DeprecationWarning: old option" in log
    assert "WARNING library this is slow" in log
    assert log.splitlines()[-1].endswith("pair: done")
    assert "640 rows" in capsys.readouterr().out
    assert logging.getLogger("vlcp_ray").level == logging.NOTSET


def test_an_error_leaves_its_traceback_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="class 7") as raised, logged(Store.at(str(tmp_path)), "digits", "pair", ""):
        raise ValueError("class 7 has 3 images")
    assert place(raised.value).startswith(f" (log: {tmp_path}/logs/digits/pair/2")
    assert place(ValueError()) == ""
    (log,) = files(tmp_path)
    assert "Traceback (most recent call last)" in log
    assert "ValueError: class 7 has 3 images" in log
    monkeypatch.setattr("vlcp_ray.logs.time.strftime", lambda *_: "9999.log")
    with logged(Store.at(str(tmp_path)), "digits", "pair", ""):
        pass
    assert len(files(tmp_path)) == 2  # the next attempt has its own


def test_a_log_comes_to_the_store_while_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_EVERY", 0.02)
    with logged(Store.at(str(tmp_path)), "digits", "pair", ""):
        say("pair", "under way")
        while not list(tmp_path.rglob("*.log")) or "under way" not in files(tmp_path)[0]:
            time.sleep(0.01)
