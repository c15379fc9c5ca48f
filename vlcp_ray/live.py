"""Knows the live view of a run on a terminal: all its stages, and of the one at work its rows, rate and devices."""

import sys
from typing import Final, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlcp_ray.progress import Progress, Reading, View

_STYLES: Final = {"running": "bold", "done": "green", "skipped": "dim", "waiting": "dim"}
_NAME: Final = 18  # cells, as the next
_BAR: Final = 24


class LiveView(View):
    """The stages as a table that is drawn anew four times a second, below all lines that are told.

    The terminal is as before once the view is left, in whatever way.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.made: dict[str, str] = {}
        self.began = self.clock()
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveView":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def enter(self, stage: str, devices: str) -> None:
        super().enter(stage, devices)
        self.began = self.clock()

    def leave(self, stage: str) -> None:
        super().leave(stage)
        self.made[stage] = f"{self.clock() - self.began:,.1f} s{self.made.get(stage, '')}"

    def starts(self, progress: Progress) -> None:
        self.current = progress
        if progress.count:
            super().starts(progress)

    def ends(self, progress: Progress, stopped: bool) -> None:
        super().ends(progress, stopped)
        for stage in (name for name, state in self.stages.items() if state == "running"):
            self.made[stage] = f", {progress.count:,} {progress.unit}, {progress.rejected:,} rejected"

    def moved(self, progress: Progress) -> None:
        """Nothing: the table is drawn from what the progress has counted."""

    def table(self) -> Table:
        """What is drawn."""
        table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
        table.add_column(min_width=_NAME, no_wrap=True)
        table.add_column(min_width=_BAR, no_wrap=True)
        table.add_column()
        now = self.reading()
        for stage, state in self.stages.items():
            style = _STYLES[state]
            if state == "running" and now is not None:
                table.add_row(Text(now.title, style), _bar(now), Text(f"{now.share().strip()} {now.speed()}", style))
                table.add_row("", "", Text(f"{now.rejected:,} rejected, on {now.devices}"))
                table.add_row("", "", Text(now.note))
            else:
                table.add_row(Text(stage, style), Text(state, style), Text(self._beside(stage, state), style))
        return table

    def _beside(self, stage: str, state: str) -> str:
        since = f"{self.clock() - self.began:,.0f} s, on {self.devices}"
        return since if state == "running" else self.made.get(stage, "")


def _bar(now: Reading) -> ProgressBar:
    return ProgressBar(total=now.total, completed=now.rows, width=_BAR, pulse=now.total is None)


def view(plain: bool = False, stream: TextIO | None = None) -> View:
    """The live view where the output is a terminal that can move its cursor, else plain lines."""
    stream = stream or sys.stdout
    console = Console(file=stream)
    return View() if plain or not stream.isatty() or console.is_dumb_terminal else LiveView(console)
