"""Tests of the live view: all stages, the progress of the running one, and a restored terminal."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from vlcp_ray.monitoring.progress import Progress, View
from vlcp_ray.monitoring.terminal import LiveView, NotebookView, view

ROOT = Path(__file__).parents[2]
SHOWN, HIDDEN = "\x1b[?25h", "\x1b[?25l"
SCRIPT = """
import signal, sys, time
from vlcp_ray.cli import _interrupt
from vlcp_ray.monitoring.terminal import view
from vlcp_ray.monitoring.progress import Progress
signal.signal(signal.SIGTERM, _interrupt)
with view() as live:
    live.set_stages({"pair": "waiting", "finetune": "waiting"})
    live.start_stage("pair", "caption 2 x 1 CPU")
    with Progress("pair", 10, "rows", view=live) as progress:
        progress.add(5)
        print("another line")
        time.sleep(0.6)
        {then}
    live.end_stage("pair")
print("after", flush=True)
"""


def rendered(live: LiveView) -> list[str]:
    out = Console(file=io.StringIO(), width=120)
    out.print(live.table())
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines() if line.strip()]


def test_live_view_shows_all_stages_and_the_progress_of_one() -> None:
    live = LiveView(Console(file=io.StringIO(), force_terminal=True))
    live.set_stages({"ingest": "skipped", "pair": "waiting", "finetune": "waiting"})
    live.start_stage("pair", "caption 2 x 1 CPU")
    assert rendered(live)[1].split()[:4] == ["pair", "running", "0", "s,"]  # no row is counted yet
    progress = Progress("pair", 40, "rows", 10, 3, view=live)
    progress.start -= 10
    progress.add(20, "a note", rejected=2)
    first, pair, rejected, note, last = rendered(live)
    assert first.split() == ["ingest", "skipped"]
    assert pair.split()[0] == "pair"
    assert pair.endswith("30 of 40 rows (75%) 2.0/s, at most 5 s left")
    assert rejected.strip() == "5 rejected, on caption 2 x 1 CPU"
    assert note.strip() == "a note"
    assert last.split() == ["finetune", "waiting"]
    with progress:
        pass
    live.end_stage("pair")
    assert rendered(live)[1].split(maxsplit=1)[1].endswith("s, 30 rows, 5 rejected")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_live_view_fits_the_terminal_and_cuts_nothing(width: int) -> None:
    live = LiveView(Console(file=io.StringIO(), force_terminal=True, width=width))
    live.set_stages({"pair": "waiting", "evaluate": "waiting"})
    live.start_stage("pair", "caption 2 x 1 CPU + encode 1 to 2 x 1 CPU")
    progress = Progress("pair", 1_281_167, "rows", view=live)
    progress.start -= 10
    progress.add(5_000, "a note", rejected=2)
    out = Console(file=io.StringIO(), width=width)
    out.print(live.table(width))
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(out.file.getvalue().split()).replace("━", "").replace("╺", "")
    for word in [
        "pair",
        "5,000",
        "1,281,167",
        "(0%)",
        "left",
        "rejected,",
        "caption",
        "encode",
        "CPU",
        "note",
        "evaluate",
        "waiting",
    ]:
        assert word in words
    assert len(lines) <= 14


class Display:
    """In place of IPython's handle of what is shown below a cell."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, shown: NotebookView) -> None:
        self.shown.append(shown._repr_html_())


def test_notebook_view_shows_the_table_again_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, display = Display(), ModuleType("IPython.display")
    display.display = lambda _, display_id: handle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("vlcp_ray.monitoring.terminal.Console", partial(Console, force_jupyter=True))
    live = view(stream=io.StringIO())
    assert isinstance(live, NotebookView)
    monkeypatch.undo()
    live.set_stages({"ingest": "skipped", "pair": "waiting"})
    live.start_stage("pair", "caption 2 x 1 CPU")
    assert "running" in handle.shown[-1]
    with Progress("pair", 40, "rows", view=live) as progress:
        progress.add(20)
        progress.add(5)
        assert len(handle.shown) == 1
        live.updated -= 1
        progress.add(5)
    assert "30 of 40 rows (75%)" in handle.shown[-1]
    live.end_stage("pair")
    assert "30 rows, 0 rejected" in handle.shown[-1]
    assert len(handle.shown) == 3


def test_view_without_a_terminal_is_plain() -> None:
    assert type(view(stream=io.StringIO())) is View


def run_on_terminal(then: str, number: signal.Signals | None = None, terminal: str = "xterm") -> tuple[int, str]:
    """Run the script on a terminal, send it a signal once the table is shown, and return its exit code and output."""
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": terminal, "PYTHONPATH": str(ROOT)}
    # A shell's background jobs ignore Ctrl-C, and so do their children.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + SCRIPT.replace("{then}", then)
    run = subprocess.Popen([sys.executable, "-c", code], stdout=child, stderr=subprocess.PIPE, env=environment)
    os.close(child)
    written = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        written += part
        if number and b"5 of 10" in written:
            run.send_signal(number)
            number = None
    os.close(parent)
    assert run.stderr is not None
    run.stderr.close()
    return run.wait(), written.decode()


@pytest.mark.parametrize(
    ("then", "number"),
    [
        ("progress.add(5)", None),
        ("raise ValueError", None),
        ("time.sleep(60)", signal.SIGINT),
        ("time.sleep(60)", signal.SIGTERM),
    ],
    ids=["end", "error", "Ctrl-C", "SIGTERM"],
)
def test_live_view_restores_the_terminal(then: str, number: signal.Signals | None) -> None:
    code, written = run_on_terminal(then, number)
    assert HIDDEN in written
    assert "5 of 10 rows (50%)" in written
    assert "another line" in written
    assert written.rindex(SHOWN) > written.rindex(HIDDEN)  # the cursor is visible again
    assert (code == 0) == (then == "progress.add(5)") == ("after" in written)


def test_live_view_with_no_color_moves_the_cursor_and_colours_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    code, written = run_on_terminal("progress.add(5)")
    assert code == 0
    assert HIDDEN in written
    assert not re.findall(r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d(?:;\d+)*m", written)
    monkeypatch.delenv("NO_COLOR")
    _, coloured = run_on_terminal("progress.add(5)")
    assert re.findall(r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d(?:;\d+)*m", coloured)


def test_view_on_a_dumb_terminal_is_plain() -> None:
    code, written = run_on_terminal("progress.add(5)", terminal="dumb")
    assert code == 0
    assert "\x1b" not in written
    assert "10 rows" in written
