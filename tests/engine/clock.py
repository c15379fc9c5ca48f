"""A clock for modules that measure: it stands still unless it is told to go on."""

from types import SimpleNamespace

import pytest


class Clock:
    """Stands in for the module `time` of one module.

    Args:
        seconds: that pass between two looks at it.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.now = seconds, 1000.0

    def look(self) -> float:
        now = self.now
        self.now += self.seconds
        return now


def set_clock(monkeypatch: pytest.MonkeyPatch, module: str, seconds: float = 0.0) -> Clock:
    """Replace the clocks of a module, given by its name."""
    clock = Clock(seconds)
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=clock.look, perf_counter=clock.look))
    return clock
