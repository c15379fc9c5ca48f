"""Tests of rejecting rows of the same image_id."""

from pathlib import Path

import pyarrow as pa
import pytest

from vlcp_ray.config import Job
from vlcp_ray.pipeline import graph
from vlcp_ray.schemas import IMAGES, REJECTED, conform
from vlcp_ray.settings import build
from vlcp_ray.stages.ingest.duplicates import reject_duplicates
from vlcp_ray.store.artifact import Artifact, Store
from vlcp_ray.store.io import StoreError


def sources(artifact: Artifact) -> list[str]:
    return sorted(artifact.table("images", IMAGES)["source"].to_pylist())


def rejected(artifact: Artifact) -> list[tuple[str, ...]]:
    rows = artifact.table("rejected", REJECTED).to_pylist()
    return [(row["source"], row["reason"], row["detail"]) for row in rows]


@pytest.mark.parametrize("name", ["00", "zz"])
def test_reject_duplicates_interrupted_anywhere_gives_same_rows(tmp_path: Path, name: str) -> None:
    artifact = Store.at(str(tmp_path)).artifact(graph(build(Job, {"name": "x"}, "x"))[0])
    rows = [
        {"image_id": i, "label": 0, "class_name": "cat", "split": "train", "image": b"x", "source": s}
        for i, s in (("1", "b"), ("2", "c"), ("1", "a"))
    ]
    artifact.write_table(f"images/{name}.parquet", conform(pa.Table.from_pylist(rows[:2]), IMAGES))
    artifact.write_table("images/two.parquet", conform(pa.Table.from_pylist(rows[2:]), IMAGES))
    before = {file.name: file.read_bytes() for file in Path(artifact.path, "images").iterdir()}
    for _ in range(2):
        reject_duplicates(artifact)
        assert sources(artifact) == ["a", "c"]
        assert rejected(artifact) == [("b", "duplicate", "1 is also the id of a")]
        for name, content in before.items():  # as if the move was interrupted before the old files were deleted
            Path(artifact.path, "images", name).write_bytes(content)
    reject_duplicates(artifact)
    assert sources(artifact) == ["a", "c"]


def test_reject_duplicates_in_a_damaged_file_names_the_repair(tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(graph(build(Job, {"name": "x"}, "x"))[0])
    row = {"image_id": "1", "label": 0, "class_name": "cat", "split": "train", "image": b"x", "source": "b"}
    artifact.write_table("images/a.parquet", conform(pa.Table.from_pylist([row]), IMAGES))
    file = Path(artifact.path, "images", "a.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(60) + content[64:])
    with pytest.raises(StoreError, match=r"/images cannot be read \(.*\); the artifact is damaged: remove the folder"):
        reject_duplicates(artifact)
