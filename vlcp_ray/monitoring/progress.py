"""Progress of a run: rows, rate and time left of a stage, as log lines or as a snapshot."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self, TextIO

from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.store.uris import redact

#: The logger of a run; its handler writes the log file of the stage.
LOG: Final = logging.getLogger("vlcp_ray")
_INTERVAL: Final = 10.0  # seconds between progress lines
_IDLE_INTERVAL: Final = 60.0  # seconds between progress lines while the count does not change


def log_line(title: str, text: str, stream: TextIO | None = None) -> None:
    """Print one line and write it to the log file of the stage: secrets masked, unseen characters escaped."""
    line = printable(redact(f"{title:<28} {text}".rstrip()))
    print(line, file=stream, flush=True)
    LOG.info(line)


@dataclass(frozen=True)
class ProgressSnapshot:
    """The progress of a stage at one moment.

    Args:
        makes: fingerprints of the artifacts that the stage makes.
        total: None where the number of rows is not known.
        rate: rows per second.
        is_steady: whether the rate leaves out the start-up; otherwise the time left is an upper bound.
    """

    title: str
    makes: Sequence[str]
    rows: int
    total: int | None
    unit: str
    rejected: int
    rate: float
    devices: str
    note: str
    is_steady: bool = True

    def share(self) -> str:
        """Format the count: `640 of 1,297 rows (49%)`."""
        if self.total is None:
            return f"{self.rows:>7,} {self.unit}"
        return f"{self.rows:>7,} of {self.total:,} {self.unit} ({self.rows / max(self.total, 1):.0%})"

    def speed(self) -> str:
        """Format rate and time left: `35.0/s, 19 s left`; empty while nothing is counted."""
        if self.rate <= 0:
            return ""
        bound = "" if self.is_steady else "at most "
        left = "" if self.total is None else f", {bound}{format_duration((self.total - self.rows) / self.rate)} left"
        speed = f"{self.rate:,.1f}/s" if self.rate >= 1 else f"{60 * self.rate:,.1f}/min"
        return f"{speed}{left}"

    def __str__(self) -> str:
        count = " ".join(part for part in (self.share(), self.speed()) if part)
        devices = f"on {self.devices}" if self.devices else ""
        return ", ".join(part for part in (count, f"{self.rejected:,} rejected", devices, self.note) if part)


class View:
    """Show a run as log lines: one at the start and the end of a stage, and at most one every 10 s between them.

    It also holds the progress of the stage and the peak memory of its processes.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self.stages: dict[str, str] = {}
        self.devices, self.workers = "", 1
        self.current: Progress | None = None
        self.last_line, self.last_count = clock(), -1
        self.peaks = Peaks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log_line(self, title: str, text: str) -> None:
        """Print one line and write it to the log file of the stage."""
        log_line(title, text, self.stream)

    def set_stages(self, stages: Mapping[str, str]) -> None:
        """Set the stages of the run, in order, each with its state: skipped, waiting, running or done."""
        self.stages = dict(stages)

    def start_stage(self, stage: str, devices: str, workers: int = 1) -> None:
        """Mark a stage as running on these devices by so many workers at the same time, and reset the peaks."""
        self.stages[stage], self.devices, self.workers, self.peaks = "running", devices, workers, Peaks()
        reset_peaks(stage)

    def end_stage(self, stage: str) -> None:
        """Mark a stage as done."""
        self.stages[stage], self.devices = "done", ""

    def on_start(self, progress: "Progress") -> None:
        """Log the total of a stage that starts, or the count of one that resumes."""
        self.current, self.last_line, self.last_count = progress, self.clock(), progress.count
        now = progress.snapshot()
        total = "" if now.total is None else f" of {now.total:,}"
        line = f"resumes after {now.rows:,}{total} {now.unit}" if now.rows else ""
        if not line and self.devices:
            line = "starts" if now.total is None else f"starts: {now.total:,} {now.unit}"
        if line:
            self.log_line(progress.title, f"{line}{f', on {self.devices}' if self.devices else ''}")

    def on_update(self, progress: "Progress") -> None:
        """Log the progress if the last line is 10 s old, or 60 s if the count is the same."""
        now = self.clock()
        if now - self.last_line >= (_INTERVAL if progress.count != self.last_count else _IDLE_INTERVAL):
            self.last_line, self.last_count = now, progress.count
            self.log_line(progress.title, str(progress.snapshot()))

    def on_end(self, progress: "Progress", stopped: bool) -> None:
        """Log the count and the seconds of a stage that has ended, or was stopped by an error."""
        seconds = self.clock() - progress.start
        self.current = None
        line = f"{progress.count:>7,} {progress.unit:<10} {seconds:7.1f} s"
        self.log_line(progress.title, f"{line}{' (stopped)' if stopped else ''}")

    def record_peaks(self, peaks: Peaks) -> None:
        """Record the peak memory of a process that worked on the stage, and say if its batches did not fit."""
        if peaks.halvings and not self.peaks.halvings:
            self.log_line(
                next((name for name, state in self.stages.items() if state == "running"), "memory"),
                "out of GPU memory: batches were halved, and results may differ in the last bit; where the scale file "
                "has their batch_size, a smaller one spares the attempts",
            )
        self.peaks = self.peaks.maximum(peaks)

    def snapshot(self) -> ProgressSnapshot | None:
        """Return the progress of the running stage, or None."""
        current = self.current  # another thread may set it to None
        return None if current is None else current.snapshot()

    def peak_facts(self) -> dict[str, int]:
        """Peak memory, in MiB, of the largest process of this stage, and of a GPU if one was used."""
        peaks = self.peaks.maximum(measure_peaks())
        on_gpu = {"peak_gpu_memory": peaks.gpu_memory, "halvings": peaks.halvings}
        return {"peak_memory": peaks.memory, **{name: value for name, value in on_gpu.items() if value}}


class Progress:
    """Count the rows of one stage, and report them to a view.

    Args:
        total: None where the number of rows is not known.
        done: rows of earlier runs: they are part of the count, but not of the rate.
        rejected: rejected rows of earlier runs.
        makes: fingerprints of the artifacts that the stage makes.
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
        #: Until each worker has had time for one result, the seconds of its start are a part of the time.
        self.unsettled, self.settled = self.view.workers, (self.start, done)
        self.view.on_start(self)

    def add(self, rows: int, note: str = "", rejected: int = 0, peaks: Peaks | None = None) -> None:
        """Count rows.

        Args:
            rows: number of rows, including rejected ones.
            note: shown with the progress until the next note.
            peaks: of the process that worked on the rows.
        """
        self.count += rows
        if rows and self.unsettled:
            self.unsettled -= 1
            self.settled = (self.view.clock(), self.count)
        self.rejected += rejected
        self.note = printable(note) or self.note
        if peaks:
            self.view.record_peaks(peaks)
        self.view.on_update(self)

    def snapshot(self) -> ProgressSnapshot:
        """Return the progress at this moment.

        The rate is that since every worker has given a first result, with its start; before, that since the start.
        """
        now, (since, before) = self.view.clock(), self.settled
        is_steady = not self.unsettled and self.count > before
        rate = (self.count - self.done) / max(now - self.start, 1e-9)
        if is_steady:  # all workers may give their next results at the same moment: until then this rate is too low
            rate = max(rate, (self.count - before) / max(now - since, 1e-9))
        counts = (self.count, self.total, self.unit, self.rejected)
        return ProgressSnapshot(self.title, self.makes, *counts, rate, self.view.devices, self.note, is_steady)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.view.on_end(self, kind is not None)


def format_duration(seconds: float) -> str:
    """Format seconds as `90 s`, `12 min` or `3 h 20 min`."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
