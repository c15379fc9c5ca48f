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
from contextlib import suppress
from functools import cache
from typing import Final

from vlcp_ray import images

_WALL: Final = 20  # seconds on the clock per second of processor time: only for a decoder that waits for ever
_SERVE: Final = "from vlcp_ray.images import serve_checks; serve_checks()"


class Checker:
    """Call `images.check` in another process: a picture can make a decoder crash, or take hours or all memory.

    Processor time is limited, not time on the clock: a busy machine rejects the same rows as an idle one.
    """

    def __init__(self, max_pixels: int, max_seconds: float) -> None:
        self.max_pixels, self.max_seconds = max_pixels, max_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, data: bytes) -> tuple[str, str] | None:
        """Check an image file. Returns the reason and the detail of its rejection, or None."""
        process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process that checks images has no pipes")
        try:
            process.stdin.write(struct.pack(images.CHECK_REQUEST, len(data), self.max_pixels, self.max_seconds))
            process.stdin.write(data)
            process.stdin.flush()
        except BrokenPipeError:
            return self._ended(process)
        if not select.select([process.stdout], [], [], math.ceil(_WALL * (self.max_seconds + 3)))[0]:
            process.kill()
        answer = process.stdout.readline()
        if not answer.endswith(b"\n"):
            return self._ended(process)
        reason, detail = json.loads(answer)
        return (reason, detail) if reason else None

    def _start(self) -> subprocess.Popen[bytes]:
        # The path of this process: Ray adds folders to it that a new process would not have.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-c", _SERVE]
        process = subprocess.Popen(  # noqa: S603 # this Python, and a constant
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._process = process
        if process.stdout is None or process.stdout.readline() != images.CHECK_READY:
            self.close()
            raise RuntimeError(f"the process that checks images does not start: {' '.join(command)}")
        return process

    def _ended(self, process: subprocess.Popen[bytes]) -> tuple[str, str]:
        """Say why the process has ended; the next image gets another."""
        number = -process.wait()
        self.close()
        if number in (signal.SIGPROF, signal.SIGKILL):
            return "too_slow", f"decoding takes more than ingest.max_seconds, {self.max_seconds:g}"
        return "undecodable", f"the decoder crashed with {_signal_name(number)}"

    def close(self) -> None:
        """End the process; the next image starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError):  # bytes that the process has not read
                process.communicate()


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"exit code {-number}"


@cache
def checker(max_pixels: int, max_seconds: float) -> Checker:
    """Return the checker of this process."""
    one = Checker(max_pixels, max_seconds)
    atexit.register(one.close)
    return one
