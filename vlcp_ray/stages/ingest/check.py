"""Check images in a process of its own, which a picture of a stranger may end without ending the run."""

import atexit
import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import IO, Final

from vlcp_ray import images

_WALL: Final = 20  # seconds on the clock per second of processor time: only for a decoder that waits for ever
_BATCH: Final = 2**24  # bytes of images that are handed over at once
_SERVE: Final = "from vlcp_ray.images import serve_checks; serve_checks({}, {})"

Answer = tuple[str, str] | None  # reason and detail of a rejection


class Checker:
    """Call `images.check` in another process: a picture can make a decoder crash, or take hours or all memory.

    Processor time is limited, not time on the clock: a busy machine rejects the same rows as an idle one. Images go
    through memory that both processes share.
    """

    def __init__(self, max_pixels: int, max_seconds: float) -> None:
        self.max_pixels, self.max_seconds = max_pixels, max_seconds
        self._child: _Child | None = None

    def __call__(self, contents: Sequence[bytes]) -> list[Answer]:
        """Check image files. Returns for each the reason and the detail of its rejection, or None."""
        answers: list[Answer] = []
        while len(answers) < len(contents):
            answers += self._check_some(_first_batch(contents[len(answers) :]))
        return answers

    def _check_some(self, contents: Sequence[bytes]) -> list[Answer]:
        """Check images up to the first that ends the process, at least one."""
        if self._child and self._child.process.poll() is not None:
            self.close()  # it ended while there was nothing to check
        child = self._child = self._child or _Child.start()
        request = struct.pack(images.CHECK_REQUEST, len(contents), self.max_pixels, self.max_seconds)
        try:
            is_done = child.ask(request, contents) and child.wait(math.ceil(_WALL * (self.max_seconds + 3)))
            lines = [line for line in child.read_answers().splitlines(keepends=True) if line.endswith(b"\n")]
        except BaseException:  # the process is still busy with these images
            self.close()
            raise
        answers: list[Answer] = [(reason, detail) if reason else None for reason, detail in map(json.loads, lines)]
        if is_done:
            return answers
        ended = self._ended(child)
        return answers if len(answers) == len(contents) else [*answers, ended]

    def _ended(self, child: "_Child") -> tuple[str, str]:
        """Say why the process has ended; the next image gets another."""
        number = -child.process.wait()
        self.close()
        if number in (signal.SIGPROF, signal.SIGKILL):
            return "too_slow", f"decoding takes more than ingest.max_seconds, {self.max_seconds:g}"
        return "undecodable", f"the decoder crashed with {_signal_name(number)}"

    def close(self) -> None:
        """End the process; the next image starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.close()


@dataclass(frozen=True)
class _Child:
    """The other process, its pipes, and the memory that it shares."""

    process: "subprocess.Popen[bytes]"
    requests: IO[bytes]
    signals: IO[bytes]
    contents: IO[bytes]
    answers: IO[bytes]

    @classmethod
    def start(cls) -> "_Child":
        # The path of this process: Ray adds folders to it that a new process would not have.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        contents, answers = _shared_file(), _shared_file()
        shared = (contents.fileno(), answers.fileno())
        command = [sys.executable, "-P", "-c", _SERVE.format(*shared)]
        process = subprocess.Popen(  # noqa: S603 # this Python, and a constant
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, pass_fds=shared
        )
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process that checks images has no pipes")
        child = cls(process, process.stdin, process.stdout, contents, answers)
        if child.signals.readline() != images.CHECK_READY:
            child.close()
            raise RuntimeError(f"the process that checks images does not start: {' '.join(command)}")
        return child

    def ask(self, head: bytes, contents: Sequence[bytes]) -> bool:
        """Hand over a request and its images; return whether the process takes it."""
        self.answers.seek(0)
        self.answers.truncate()
        self.contents.seek(0)
        if os.fstat(self.contents.fileno()).st_size > _BATCH:
            self.contents.truncate()  # of a large image
        for content in contents:
            left = memoryview(content)
            while left:
                left = left[self.contents.write(left) :]
        try:
            self.requests.write(head + b"".join(struct.pack(images.CHECK_SIZE, len(one)) for one in contents))
            self.requests.flush()
        except BrokenPipeError:
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until all images are checked; return False where the process has ended before, or had to be ended.

        Args:
            seconds: that an image may take on the clock.
        """
        answered = -1
        while not select.select([self.signals], [], [], seconds)[0]:
            size = os.fstat(self.answers.fileno()).st_size
            if size == answered:
                self.process.kill()
                self.process.wait()
                return False
            answered = size
        return self.signals.readline() == images.CHECK_READY

    def read_answers(self) -> bytes:
        self.answers.seek(0)
        return self.answers.read()

    def close(self) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):  # bytes that the process has not read
            self.process.communicate()
        self.contents.close()
        self.answers.close()


def _shared_file() -> IO[bytes]:
    """Open a file that a child process can read and write, in memory where the system has such files.

    Both processes write at the same offset, which is that of the file that they share.
    """
    if not hasattr(os, "memfd_create"):  # macOS
        return tempfile.TemporaryFile("w+b", buffering=0)
    return os.fdopen(os.memfd_create("images"), "w+b", buffering=0)


def _first_batch(contents: Sequence[bytes]) -> Sequence[bytes]:
    """Return the first images that are handed over at once: one, or more with up to _BATCH bytes."""
    size = 0
    for number, content in enumerate(contents):
        size += len(content)
        if number and size > _BATCH:
            return contents[:number]
    return contents


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"exit code {-number}"


@cache
def checker(max_pixels: int, max_seconds: float) -> Checker:
    """Return the checker of this process."""
    one = Checker(max_pixels, max_seconds)
    atexit.register(one.close)
    return one
