"""A root with the artifacts of jobs, whose tables are a few bytes."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.small_job import JOB
from vlcp_ray.config import load_job
from vlcp_ray.engine.context import identity
from vlcp_ray.pipeline import graph
from vlcp_ray.stages import STAGES
from vlcp_ray.store.artifact import Artifact, Step, Store

FACTS = {"rows_in": 1, "rows": 1, "rejected": 0, "seconds": 1.0, "splits": {"train": 9, "val": 9}, "class_names": ["0"]}
STRONGER = "generate.strength=0.3"


def steps_of(*overrides: str) -> tuple[Step, ...]:
    return graph(load_job(JOB, overrides))


def write(store: Store, step: Step, complete: bool = True) -> Artifact:
    """Write an artifact with a file of every name that its stage writes, and its manifest."""
    artifact, stage = store.artifact(step), STAGES[step.stage]
    names = [f"{name}/0.parquet" for name in stage.tables]
    names += [name if "." in name else f"{name}/0.bin" for name in stage.files]
    for name in names:
        artifact.write_bytes(name, name.encode())
    if complete:
        entries = {name: {"bytes": len(name), "sha256": ""} for name in names}
        artifact.complete(identity(step) | FACTS | {"files": entries})
    return artifact


def write_log(root: Path, job: str, steps: Sequence[Step], name: str = "2025-01-01T00-00-00.log") -> None:
    """Write the log of a stage, as a run begins it."""
    folder = root / "logs" / job / steps[0].stage
    folder.mkdir(parents=True, exist_ok=True)
    makes = json.dumps({"makes": [f"{step.title} {step.fingerprint}" for step in steps], "scale": {}})
    (folder / name).write_text(f"2025-01-01 00:00:00,000 INFO    vlcp_ray {steps[0].stage}: {makes}\nmore\n")
