"""Log files of stages: log lines, warnings, and errors with their tracebacks; a file per attempt."""

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

from vlcp_ray.monitoring.printable import printable
from vlcp_ray.monitoring.progress import LOG
from vlcp_ray.store.artifact import Artifact, Store
from vlcp_ray.store.io import StoreError
from vlcp_ray.store.uris import redact

FOLDER: Final = "logs"
_NO_PROPAGATION: Final = ("ray", "ray.data", "ray.train")  # loggers that may not propagate to the root logger
_INTERVAL: Final = 60.0  # seconds between copies to the store: a killed run leaves the last copy


@contextmanager
def logged(store: Store, job: str, stage: str, header: str) -> Iterator[None]:
    """Log a stage to `<root>/logs/<job>/<stage>/<time>.log`, with the header in the first line.

    An error gets a note with the path of the log.
    """
    logs = Artifact(store.filesystem, f"{store.path}/{FOLDER}/{job}/{stage}")
    name = time.strftime("%Y-%m-%dT%H-%M-%S.log", time.gmtime())
    with tempfile.TemporaryDirectory() as local:
        file = Path(local, name)
        with _log_to(file):
            ended = threading.Event()
            copying = threading.Thread(target=_copy, args=(logs, name, file, ended), daemon=True)
            copying.start()
            try:
                LOG.info("%s: %s", stage, header)
                yield
                LOG.info("%s: done", stage)
            except BaseException as error:
                LOG.error("%s: stopped", stage, exc_info=error)
                error.add_note(f"log: {logs.path}/{name}")
                with suppress(StoreError):  # the first error is reported
                    _put(logs, name, file)
                raise
            finally:
                ended.set()
                copying.join()
        _put(logs, name, file)


def log_note(error: BaseException) -> str:
    """Return the path of the log of an error as ` (log: PATH)`, or an empty string."""
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()) if note.startswith("log: "))


@contextmanager
def _log_to(file: Path) -> Iterator[None]:
    root, handler, level, showwarning = logging.getLogger(), logging.FileHandler(file), LOG.level, warnings.showwarning
    handler.setFormatter(_Utc("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    # Python prints warnings and errors only while the root logger has no handler: add the handler that it would use.
    handlers = [handler, *([logging.lastResort] if logging.lastResort and not root.handlers else [])]

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
        LOG.info("warning: %s", warnings.formatwarning(message, category, filename, lineno))
        showwarning(message, category, filename, lineno, *more)

    warnings.showwarning = show  # type: ignore[assignment]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # its lines are printed by log_line, and an error at the end of the run
    separate = [logger for logger in map(logging.getLogger, _NO_PROPAGATION) if not logger.propagate]
    pairs = [*product([root], handlers), *product([LOG, *separate], [handler])]
    for logger, one in pairs:
        logger.addHandler(one)
    try:
        yield
    finally:
        for logger, one in pairs:
            logger.removeHandler(one)
        handler.close()
        LOG.setLevel(level)
        LOG.propagate = True
        warnings.showwarning = showwarning


class _Utc(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]

    def format(self, record: logging.LogRecord) -> str:
        """Mask secrets, escape what cannot be seen, and indent all lines but the first."""
        return "\n    ".join(printable(line, keep="\t") for line in redact(super().format(record)).split("\n"))


def _copy(logs: Artifact, name: str, file: Path, ended: threading.Event) -> None:
    while not ended.wait(_INTERVAL):
        with suppress(StoreError):  # the next copy has the missing lines
            _put(logs, name, file)


def _put(logs: Artifact, name: str, file: Path) -> None:
    logs.write_bytes(name, file.read_bytes())
