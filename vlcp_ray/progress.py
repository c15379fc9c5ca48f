"""Knows how work is told while it goes on: the rows, rate and time left of a stage, in lines or to whoever asks."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self, TextIO

from vlcp_ray.memory import Peaks, begin, peaks

#: What a run tells; a stage's log file listens to it.
LOG: Final = logging.getLogger("vlcp_ray")
_EVERY: Final = 10.0  # seconds between the lines of a run about work under way
_STILL: Final = 60.0  # and between those that have nothing new


def say(title: str, text: str, stream: TextIO | None = None) -> None:
    """Tell one line, on the output and in the stage's log."""
    line = f"{title:<28} {text}".rstrip()
    print(line, file=stream, flush=True)
    LOG.info(line)


@dataclass(frozen=True)
class Reading:
    """How far a stage is: it makes the artifacts with these fingerprints, `rate` rows a second of `total`, if known."""

    title: str
    makes: Sequence[str]
    rows: int
    total: int | None
    unit: str
    rejected: int
    rate: float
    devices: str
    note: str

    def share(self) -> str:
        if self.total is None:
            return f"{self.rows:>7,} {self.unit}"
        return f"{self.rows:>7,} of {self.total:,} {self.unit} ({self.rows / max(self.total, 1):.0%})"

    def speed(self) -> str:
        if self.rate <= 0:
            return ""
        left = "" if self.total is None else f", {span((self.total - self.rows) / self.rate)} left"
        pace = f"{self.rate:,.1f}/s" if self.rate >= 1 else f"{60 * self.rate:,.1f}/min"
        return f"{pace}{left}"

    def __str__(self) -> str:
        paced = " ".join(part for part in (self.share(), self.speed()) if part)
        on = f"on {self.devices}" if self.devices else ""
        return ", ".join(part for part in (paced, f"{self.rejected:,} rejected", on, self.note) if part)


class View:
    """Tells a run in plain lines: one where a stage's work starts and ends, and between them one every 10 s at most.

    It also holds what is asked of the run meanwhile: how far the stage is, and the peaks of its processes' memory.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self.stages: dict[str, str] = {}
        self.devices = ""
        self.current: Progress | None = None
        self.told, self.rows = clock(), -1
        self.peaks = Peaks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, title: str, text: str) -> None:
        say(title, text, self.stream)

    def plan(self, stages: Mapping[str, str]) -> None:
        """The stages of the run in their order, each with its state: skipped, waiting, running or done."""
        self.stages = dict(stages)

    def enter(self, stage: str, devices: str) -> None:
        """A stage begins, on these devices."""
        self.stages[stage], self.devices, self.peaks = "running", devices, Peaks()
        begin(stage)

    def leave(self, stage: str) -> None:
        self.stages[stage], self.devices = "done", ""

    def starts(self, progress: "Progress") -> None:
        self.current, self.told, self.rows = progress, self.clock(), progress.count
        now = progress.reading()
        of = "" if now.total is None else f" of {now.total:,}"
        begins = f"resumes after {now.rows:,}{of} {now.unit}" if now.rows else ""
        if not begins and self.devices:
            begins = "starts" if now.total is None else f"starts: {now.total:,} {now.unit}"
        if begins:
            self.say(progress.title, f"{begins}{f', on {self.devices}' if self.devices else ''}")

    def moved(self, progress: "Progress") -> None:
        now = self.clock()
        if now - self.told >= (_EVERY if progress.count != self.rows else _STILL):
            self.told, self.rows = now, progress.count
            self.say(progress.title, str(progress.reading()))

    def ends(self, progress: "Progress", stopped: bool) -> None:
        seconds = self.clock() - progress.start
        self.current = None
        told = f"{progress.count:>7,} {progress.unit:<10} {seconds:7.1f} s"
        self.say(progress.title, f"{told}{' (stopped)' if stopped else ''}")

    def note(self, peaks: Peaks) -> None:
        """Remember the peaks of a process that worked on the stage."""
        self.peaks = self.peaks.most(peaks)

    def reading(self) -> Reading | None:
        """How far the work under way is."""
        current = self.current  # another thread may end it meanwhile
        return None if current is None else current.reading()

    def peak_facts(self) -> dict[str, int]:
        """MiB of memory, at its peak in this stage, of the largest of its processes, and of a GPU if one was used."""
        most = self.peaks.most(peaks())
        return {"peak_memory": most.memory, **({"peak_gpu_memory": most.gpu_memory} if most.gpu_memory else {})}


class Progress:
    """Counts the rows of one stage for a view.

    `done` rows were there before: they count for the share and not for the rate. `total` is None where nobody knows it.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        done: int = 0,
        rejected: int = 0,
        view: View | None = None,
        makes: Sequence[str] = (),
    ) -> None:
        self.title, self.total, self.unit, self.done, self.count = title, total, unit, done, done
        self.view, self.rejected, self.makes, self.note = view or View(), rejected, tuple(makes), ""
        self.start = self.view.clock()
        self.view.starts(self)

    def add(self, rows: int, note: str = "", rejected: int = 0, peaks: Peaks | None = None) -> None:
        """Count rows, `rejected` of them, that a process with these peaks has worked on."""
        self.count += rows
        self.rejected += rejected
        self.note = note or self.note
        if peaks:
            self.view.note(peaks)
        self.view.moved(self)

    def reading(self) -> Reading:
        rate = (self.count - self.done) / max(self.view.clock() - self.start, 1e-9)
        where = self.view.devices
        return Reading(self.title, self.makes, self.count, self.total, self.unit, self.rejected, rate, where, self.note)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.view.ends(self, kind is not None)


def span(seconds: float) -> str:
    """A time as people say it: `90 s`, `12 min`, `3 h 20 min`."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
