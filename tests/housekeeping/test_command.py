"""Tests of `ls` and `gc` as a user calls them: what is printed and asked, and exit codes."""

import io
from pathlib import Path

import pytest

from tests.housekeeping.conftest import STRONGER, steps_of, write
from tests.small_job import JOB
from vlcp_ray.cli import main
from vlcp_ray.store.artifact import Store


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a run, and the sets of another strength."""
    for step in {step.fingerprint: step for step in (*steps_of(), *steps_of(STRONGER))}.values():
        write(Store.at(str(tmp_path)), step)
    return tmp_path


def count(root: Path) -> int:
    return len(list(root.glob("*-*")))


@pytest.mark.parametrize(("answer", "deleted"), [("y\n", 5), ("n\n", 0), ("\n", 0), ("", 0)])
def test_gc_lists_with_sizes_and_asks(
    answer: str, deleted: int, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    before = count(root)
    assert main(["gc", str(root), str(JOB)]) == 0
    out = capsys.readouterr().out
    assert "5 artifacts, 0.0 MiB, under" in out
    assert f"needed by none of: {JOB}" in out
    assert "Delete them? [y/N]" in out
    assert ("deleted 5 artifacts" if deleted else "nothing was deleted") in out
    assert count(root) == before - deleted


def test_gc_keeps_the_settings_and_the_reports_that_are_given(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = count(root)
    assert main(["gc", str(root), str(JOB), steps_of(STRONGER)[-1].folder, "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().out
    assert main(["gc", str(root), str(JOB), "--set", STRONGER, "--yes"]) == 0
    assert count(root) == before - 5
    assert main(["ls", str(root)]) == 0
    assert capsys.readouterr().out.count("19 of 19") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([str(JOB)], "--yes: gc asks before it deletes, and the input is no terminal: nothing was deleted; give --yes"),
        (["--yes"], "--yes: without a job file every artifact would be deleted; name the jobs that are kept"),
        (
            [str(JOB), "--set", "seeds=[3]", "--set", "ingest.val_fraction=0.5", "--yes"],
            "so that naming it keeps nothi",
        ),
        (["report-000000000000", "--yes"], "JOB report-000000000000: there is no complete report of that name under"),
        (["nothing.toml", "--yes"], "nothing.toml: no such file"),
    ],
)
def test_gc_that_is_impossible_exits_2_with_one_sentence_and_deletes_nothing(
    arguments: list[str], sentence: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = count(root)
    assert main(["gc", str(root), *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert count(root) == before


def test_ls_of_nothing_says_so_and_of_an_unusable_root_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", str(tmp_path)]) == 0
    assert "nothing is under" in capsys.readouterr().out
    assert main(["ls", str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["ls", "nope://bucket"]) == 2
    assert "--root nope://bucket" in capsys.readouterr().err
