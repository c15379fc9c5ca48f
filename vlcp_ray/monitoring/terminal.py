"""Live view of a run on a terminal or in a notebook: all stages, and rows, rate and devices of the running one."""

import io
import sys
from typing import Final, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlcp_ray.monitoring.progress import Progress, ProgressSnapshot, View

_STYLES: Final = {"running": "bold", "done": "green", "skipped": "dim", "waiting": "dim"}
_WIDTH: Final = 100  # terminal cells
#: The columns of names and bars, and the shares of a narrow terminal that they get at most.
_NAME_WIDTH, _NAME_SHARE = 18, 4
_BAR_WIDTH, _BAR_SHARE = 24, 5


class TableView(View):
    """Show the stages as a table below all log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.summaries: dict[str, str] = {}
        self.started = self.clock()

    def start_stage(self, stage: str, devices: str, workers: int = 1) -> None:
        super().start_stage(stage, devices, workers)
        self.started = self.clock()

    def end_stage(self, stage: str) -> None:
        super().end_stage(stage)
        self.summaries[stage] = f"{self.clock() - self.started:,.1f} s{self.summaries.get(stage, '')}"

    def on_start(self, progress: Progress) -> None:
        self.current = progress
        if progress.count:
            super().on_start(progress)

    def on_end(self, progress: Progress, stopped: bool) -> None:
        super().on_end(progress, stopped)
        for stage in (name for name, state in self.stages.items() if state == "running"):
            self.summaries[stage] = f", {progress.count:,} {progress.unit}, {progress.rejected:,} rejected"

    def on_update(self, progress: Progress) -> None:
        """Do nothing, because the table reads the progress itself."""

    def table(self, width: int = _WIDTH) -> Table:
        """Build the table of the current state, for so many terminal cells."""
        table, bar = Table(box=None, padding=(0, 1, 0, 0), show_header=False), min(_BAR_WIDTH, width // _BAR_SHARE)
        table.add_column(min_width=min(_NAME_WIDTH, width // _NAME_SHARE), no_wrap=True)
        table.add_column(min_width=bar, no_wrap=True)
        table.add_column()
        now = self.snapshot()
        for stage, state in self.stages.items():
            style = _STYLES[state]
            if state == "running" and now is not None:
                table.add_row(
                    Text(now.title, style), _bar(now, bar), Text(f"{now.share().strip()} {now.speed()}", style)
                )
                table.add_row("", "", Text(f"{now.rejected:,} rejected, on {now.devices}"))
                table.add_row("", "", Text(now.note))
            else:
                table.add_row(Text(stage, style), Text(state, style), Text(self._details(stage, state), style))
        return table

    def _details(self, stage: str, state: str) -> str:
        if state == "running":
            return f"{self.clock() - self.started:,.0f} s, on {self.devices}"
        return self.summaries.get(stage, "")


class LiveView(TableView):
    """Show the table on a terminal, updated four times a second.

    The terminal is restored at the end, also after an error.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.live = Live(
            get_renderable=lambda: self.table(console.width), console=console, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> "LiveView":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()


class NotebookView(TableView):
    """Show the table below the cell of a notebook, updated with the progress, at most once a second."""

    def __init__(self) -> None:
        from IPython.display import display  # a notebook has it

        super().__init__()
        self.updated = self.clock()
        self.handle = display(self, display_id=True)

    def start_stage(self, stage: str, devices: str, workers: int = 1) -> None:
        super().start_stage(stage, devices, workers)
        self.handle.update(self)

    def end_stage(self, stage: str) -> None:
        super().end_stage(stage)
        self.handle.update(self)

    def on_update(self, progress: Progress) -> None:
        """Show the table again, if what is shown is a second old."""
        if self.clock() - self.updated >= 1:
            self.updated = self.clock()
            self.handle.update(self)

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False)
        console.print(self.table())
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _bar(now: ProgressSnapshot, width: int) -> ProgressBar:
    return ProgressBar(total=now.total, completed=now.rows, width=width, pulse=now.total is None)


def view(plain: bool = False, stream: TextIO | None = None) -> View:
    """Return the view of a notebook or of a terminal that can move its cursor, else plain log lines.

    Args:
        plain: log lines in any case.
        stream: the output, by default stdout.
    """
    stream = stream or sys.stdout
    console = Console(file=stream)
    if plain or not (console.is_jupyter or (stream.isatty() and not console.is_dumb_terminal)):
        return View()
    return NotebookView() if console.is_jupyter else LiveView(console)
