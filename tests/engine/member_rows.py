"""Rows of MEMBERS and artifacts for the tests of the engine."""

from pathlib import Path

import pyarrow as pa

from vlcp_ray.engine.writing import REJECTED_TABLE
from vlcp_ray.schemas import REJECTED, conform
from vlcp_ray.stages.prototype import MEMBERS
from vlcp_ray.store.artifact import Artifact, Step, Store


def members(n: int) -> pa.Table:
    rows = {"image_id": [f"i{i:03d}" for i in range(n)], "label": [i % 7 for i in range(n)]}
    return conform(pa.table({**rows, "cluster": [0] * n, "distance": [float(i) for i in range(n)]}), MEMBERS)


def artifact(root: Path, name: str) -> Artifact:
    return Store.at(str(root)).artifact(Step(name, 1, {}))


def read_tables(target: Artifact) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Read the good and the rejected rows of an artifact, sorted."""
    good = target.table("members", MEMBERS).sort_by("image_id").to_pylist()
    return good, target.table(REJECTED_TABLE, REJECTED).sort_by("image_id").to_pylist()
