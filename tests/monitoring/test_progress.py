"""Tests of progress: rows, rate, time left and resumption, at most one line every ten seconds."""

import io
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlcp_ray.monitoring.memory import Peaks
from vlcp_ray.monitoring.progress import Progress, ProgressSnapshot, View


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def view() -> tuple[View, Clock, io.StringIO]:
    out, clock = io.StringIO(), Clock()
    return View(out, clock), clock, out


def test_progress_last_line_has_the_count() -> None:
    plain, _, out = view()
    with Progress("pair", 10, "rows", view=plain) as progress:
        for _ in range(5):
            progress.add(2)
    assert out.getvalue().splitlines()[-1].split()[:3] == ["pair", "10", "rows"]


def test_progress_of_a_resumed_stage_leaves_old_rows_out_of_the_rate() -> None:
    plain, clock, out = view()
    with Progress("pair", 10, "rows", 8, view=plain) as progress:
        clock.now += 10
        progress.add(1)
    first, line, _ = out.getvalue().splitlines()
    assert "resumes after 8 of 10 rows" in first
    assert "9 of 10 rows (90%)" in line
    assert "6.0/min, at most 10 s left, 0 rejected" in line


@given(
    start=st.floats(0, 600),
    work=st.floats(0.5, 300),
    workers=st.integers(1, 16),
    rows=st.integers(1, 300),
    rounds=st.integers(3, 30),
)
@settings(deadline=None)
def test_time_left_is_a_bound_until_all_workers_have_given_a_result_and_then_leaves_out_their_start(
    start: float, work: float, workers: int, rows: int, rounds: int
) -> None:
    plain, clock, _ = view()
    plain.start_stage("pair", "", workers)
    progress = Progress("pair", rows * workers * rounds, "rows", view=plain)
    clock.now += start
    for done in range(1, rounds):
        clock.now += work
        for _ in range(workers):
            progress.add(rows)
            now = progress.snapshot()
            left = (now.total or 0) - now.rows
            if done == 1:
                assert not now.is_steady
                assert left / now.rate >= 0.99 * (rounds - 1) * work
        if done > 1:
            assert now.is_steady
            assert left / now.rate == pytest.approx((rounds - done) * work)


def test_time_left_early_does_not_count_the_start_as_work() -> None:
    """Fifty seconds of loading and then 46 s of work were "6 min left"."""
    plain, clock, _ = view()
    plain.start_stage("pair", "caption 1 x 1 CPU")
    progress = Progress("pair", 1300, "rows", view=plain)
    clock.now += 50
    progress.add(100)
    assert progress.snapshot().speed() == "2.0/s, at most 10 min left"
    clock.now += 4
    progress.add(100)
    assert progress.snapshot().speed() == "25.0/s, 44 s left"


def test_progress_logs_every_fact_at_most_every_ten_seconds() -> None:
    plain, clock, out = view()
    plain.start_stage("pair", "caption 2 x 1 CPU")
    with Progress("pair", 4000, "rows", view=plain) as progress:
        for _ in range(400):
            clock.now += 0.125
            progress.add(5, "a note", rejected=1)
    start, *lines, _ = out.getvalue().splitlines()
    assert start.split(maxsplit=1)[1] == "starts: 4,000 rows, on caption 2 x 1 CPU"
    assert [line.split()[1] for line in lines] == ["400", "800", "1,200", "1,600", "2,000"]
    line = lines[1].split(maxsplit=1)[1]
    assert line == "800 of 4,000 rows (20%) 40.0/s, 80 s left, 160 rejected, on caption 2 x 1 CPU, a note"


def test_progress_without_new_rows_logs_once_a_minute() -> None:
    plain, clock, out = view()
    with Progress("a", 10, "rows", view=plain) as progress:
        for _ in range(130):
            clock.now += 1
            progress.add(0)
    assert len(out.getvalue().splitlines()) == 3  # at 60 s, at 120 s, and the end


def test_progress_after_an_error_logs_stopped() -> None:
    plain, _, out = view()
    with pytest.raises(RuntimeError), Progress("pair", 10, "rows", view=plain):
        raise RuntimeError
    assert "(stopped)" in out.getvalue()
    assert plain.snapshot() is None


def test_progress_without_a_total_logs_rows_and_rate() -> None:
    plain, clock, out = view()
    with Progress("ingest", None, "rows", 1000, view=plain) as progress:
        clock.now += 10
        progress.add(10)
    first, line, _ = out.getvalue().splitlines()
    assert first.split("ingest")[1].strip() == "resumes after 1,000 rows"
    assert line.split("ingest")[1].strip() == "1,010 rows 1.0/s, 0 rejected"


@pytest.mark.parametrize(("rows", "left"), [(900, "100 s left"), (400, "10 min left"), (0, "")])
def test_snapshot_speed_formats_the_time_left(rows: int, left: str) -> None:
    snapshot = ProgressSnapshot("pair", (), rows, 1000, "rows", 0, 1.0 if rows else 0.0, "", "")
    assert snapshot.speed().endswith(left)
    assert ProgressSnapshot("x", (), 0, 36000, "rows", 0, 1.0, "", "").speed() == "1.0/s, 10 h 0 min left"


def test_view_logs_lines_and_keeps_the_largest_peaks(caplog: pytest.LogCaptureFixture) -> None:
    plain, _, _ = view()
    plain.start_stage("pair", "")
    with caplog.at_level(logging.INFO, "vlcp_ray"), Progress("pair", 2, "rows", view=plain) as progress:
        progress.add(1, peaks=Peaks(10**7, 5))
        progress.add(1, peaks=Peaks(3, 7))
    assert "2 rows" in caplog.text
    assert plain.peak_facts() == {"peak_memory": 10**7, "peak_gpu_memory": 7}
    assert "out of GPU memory" not in caplog.text
    plain.start_stage("finetune", "")
    assert 0 < plain.peak_facts()["peak_memory"] < 10**6  # this process's own


def test_view_says_once_that_batches_did_not_fit() -> None:
    plain, _, stream = view()
    plain.set_stages({"ingest": "done", "pair": "waiting"})
    plain.start_stage("pair", "")
    for halvings in (0, 1, 1, 2, 1):
        plain.record_peaks(Peaks(1, 1, halvings))
    (line,) = (line for line in stream.getvalue().splitlines() if "out of GPU memory" in line)
    assert line.split()[0] == "pair"
    assert "batches were halved, and results may differ in the last bit" in line
    assert plain.peak_facts()["halvings"] == 2
