"""Tests of checking images in another process: slow pictures, crashes, and many images by one process."""

import os
import signal
import threading
from typing import Any

import pytest

from tests.hostile import slow_jpeg
from tests.image_sets import encoded, noise, picture
from vlcp_ray import images
from vlcp_ray.stages.ingest.check import Checker, _Child

TOO_SLOW = ("too_slow", "decoding takes more than ingest.max_seconds, 0.3")


@pytest.fixture
def check() -> Any:
    checker = Checker(10**6, 20.0)
    yield checker
    checker.close()


def test_checker_gives_the_answers_of_check(check: Checker) -> None:
    files = [picture(1), b"", b"text", picture(2)[:200], encoded(noise(1, (2000, 600))), picture(3, "PNG")]
    found = []
    for data in files:
        expected = None
        try:
            images.check(data, 10**6)
        except images.ImageError as error:
            expected = (error.reason, str(error))
        assert check([data]) == [expected]
        found.append(expected)
    assert check(files) == found


def test_checker_uses_one_process_for_all_images(check: Checker) -> None:
    check([picture(1)])
    child = check._child
    assert all(check([picture(seed)]) == [None] for seed in range(5))
    assert check._child is child


def test_checker_slow_picture_is_too_slow_and_the_next_is_read() -> None:
    """The scans of this picture are few enough for its pixels, and its time is too short for them."""
    check = Checker(64_000_000, 0.3)
    assert check([slow_jpeg(side=4_000, scans=30)]) == [TOO_SLOW]
    assert check([picture(1)]) == [None]
    check.close()


def test_checker_slow_picture_among_others_costs_only_its_own_row() -> None:
    check = Checker(64_000_000, 0.3)
    slow = slow_jpeg(side=4_000, scans=30)
    files = [picture(1), slow, picture(2), b"text", slow, slow, picture(3)]
    answers = check(files)
    assert [answer == TOO_SLOW for answer in answers] == [False, True, False, False, True, True, False]
    assert [answer and answer[0] for answer in answers if answer != TOO_SLOW] == [None, None, "undecodable", None]
    check.close()


@pytest.mark.parametrize("batch", [1, 5000, 2**24])
def test_checker_hands_over_batches_of_any_size(monkeypatch: pytest.MonkeyPatch, check: Checker, batch: int) -> None:
    monkeypatch.setattr("vlcp_ray.stages.ingest.check._BATCH", batch)
    files = [picture(1), noise_png(400), b"text", picture(2)]
    assert [answer and answer[0] for answer in check(files)] == [None, None, "undecodable", None]
    assert [answer and answer[0] for answer in check(files[::-1])] == [None, "undecodable", None, None]
    assert check([]) == []


def test_checker_without_files_in_memory_uses_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    check = Checker(10**6, 20.0)
    assert check([picture(1), b"text"])[0] is None
    assert check([b"text", picture(1)])[1] is None
    check.close()


def noise_png(side: int) -> bytes:
    return encoded(noise(1, (side, side)), "PNG")


def test_checker_process_that_was_ended_while_idle_costs_no_row(check: Checker) -> None:
    assert check([picture(1)]) == [None]
    assert check._child
    check._child.process.kill()
    check._child.process.wait()
    assert check([picture(1), b"text"])[0] is None


def test_checker_interrupted_within_a_batch_begins_anew(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_Child, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            check([picture(1)] * 5)
    assert [answer and answer[0] for answer in check([b"text"] * 5)] == ["undecodable"] * 5


def interrupt(*_: object) -> bool:
    raise KeyboardInterrupt


def test_checker_process_that_ends_after_its_last_answer_adds_none(
    check: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = _Child.wait

    def wait_and_kill(child: _Child, seconds: float) -> bool:
        assert wait(child, seconds)
        child.process.kill()
        return False

    monkeypatch.setattr(_Child, "wait", wait_and_kill)
    monkeypatch.setattr("vlcp_ray.stages.ingest.check._BATCH", 1)
    assert check([picture(1), picture(2), picture(3)]) == [None, None, None]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="a file on the disk")
def test_checker_keeps_no_memory_of_a_large_image(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.stages.ingest.check._BATCH", 10_000)
    check([b"x" * 100_000])
    check([picture(1)])
    assert check._child
    assert os.fstat(check._child.contents.fileno()).st_size < 100_000


def test_checker_crash_of_a_decoder_is_undecodable(check: Checker) -> None:
    """The process is ended by the signal of a crash while it has an image."""
    assert check([picture(1)]) == [None]
    assert check._child
    child = check._child
    os.kill(child.process.pid, signal.SIGSTOP)
    threading.Timer(0.5, lambda: os.kill(child.process.pid, signal.SIGSEGV)).start()
    threading.Timer(0.6, lambda: os.kill(child.process.pid, signal.SIGCONT)).start()
    assert check([picture(1), picture(2)]) == [("undecodable", "the decoder crashed with SIGSEGV"), None]
    assert check([picture(1)]) == [None]


def test_checker_process_that_does_not_start_is_no_rejected_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.stages.ingest.check._SERVE", "import nothing_of_this_name")
    with pytest.raises(RuntimeError, match="does not start"):
        Checker(10**6, 1.0)([picture(1)])


def test_check_of_repeated_scans_is_too_slow_before_decoding() -> None:
    with pytest.raises(images.ImageError, match=r"400 x 400 pixels in 3.. scans, the limit is 125") as caught:
        images.check(slow_jpeg(side=400, scans=300), 1_000_000)
    assert caught.value.reason == "too_slow"
    images.check(slow_jpeg(side=400, scans=100), 1_000_000)
