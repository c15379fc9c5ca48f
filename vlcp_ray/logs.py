"""Knows the log file of a stage: what was told, what was warned of, errors with their tracebacks, a file an attempt."""

import logging
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, Final

from vlcp_ray.progress import LOG
from vlcp_ray.store import Artifact, Store, StoreError

FOLDER: Final = "logs"
_ALONE: Final = ("ray", "ray.data", "ray.train")  # loggers that may hand nothing on to the root of all
_EVERY: Final = 60.0  # seconds between the copies of a log to the store: what is left of a run that is killed


@contextmanager
def logged(store: Store, job: str, stage: str, facts: str) -> Iterator[None]:
    """Log a stage's work to `<root>/logs/<job>/<stage>/<time>.log`, beginning with the facts.

    An error leaves with a note that says where the log is.
    """
    logs = Artifact(store.filesystem, f"{store.path}/{FOLDER}/{job}/{stage}")
    name = time.strftime("%Y-%m-%dT%H-%M-%S.log", time.gmtime())
    with tempfile.TemporaryDirectory() as local:
        file = Path(local, name)
        with _listening(file):
            ended = threading.Event()
            copying = threading.Thread(target=_copy, args=(logs, name, file, ended), daemon=True)
            copying.start()
            try:
                LOG.info("%s: %s", stage, facts)
                yield
                LOG.info("%s: done", stage)
            except BaseException as error:
                LOG.error("%s: stopped", stage, exc_info=error)
                error.add_note(f"log: {logs.path}/{name}")
                with suppress(StoreError):  # the error at hand is the one to be told
                    _put(logs, name, file)
                raise
            finally:
                ended.set()
                copying.join()
        _put(logs, name, file)


def place(error: BaseException) -> str:
    """Where the log of what went wrong is: ` (log: PATH)`, or nothing."""
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()) if note.startswith("log: "))


@contextmanager
def _listening(file: Path) -> Iterator[None]:
    root, handler, level, shown = logging.getLogger(), logging.FileHandler(file), LOG.level, warnings.showwarning
    handler.setFormatter(_Utc("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    # Where nobody listens Python prints what is serious; with the file's handler somebody does.
    heard = [handler, *([logging.lastResort] if logging.lastResort and not root.handlers else [])]

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
        LOG.info("warning: %s", warnings.formatwarning(message, category, filename, lineno))
        shown(message, category, filename, lineno, *more)

    warnings.showwarning = show  # type: ignore[assignment]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # what is told there was printed, and an error is printed where the run ends
    alone = [logger for logger in map(logging.getLogger, _ALONE) if not logger.propagate]
    for logger, one in (pairs := [*product([root], heard), *product([LOG, *alone], [handler])]):
        logger.addHandler(one)
    try:
        yield
    finally:
        for logger, one in pairs:
            logger.removeHandler(one)
        handler.close()
        LOG.setLevel(level)
        LOG.propagate = True
        warnings.showwarning = shown


class _Utc(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]


def _copy(logs: Artifact, name: str, file: Path, ended: threading.Event) -> None:
    while not ended.wait(_EVERY):
        with suppress(StoreError):  # what is missing comes with the next copy
            _put(logs, name, file)


def _put(logs: Artifact, name: str, file: Path) -> None:
    logs.write_bytes(name, file.read_bytes())
