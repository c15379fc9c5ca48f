"""Tests of execution by parts: each part is made once, and an interrupted run repeats only what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from vlcp_ray.config import Job
from vlcp_ray.engine.by_part import PartFiles, run_parts
from vlcp_ray.engine.context import Context
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.settings import build
from vlcp_ray.store.artifact import Artifact, Step, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]
STEPS = [Step("select", 1, {}, {"ipc": ipc}) for ipc in (1, 2)]
#: The second part is of the larger set only.
PARTS = [
    PartFiles("a", {step.fingerprint: "a.parquet" for step in STEPS}),
    PartFiles("b", {STEPS[1].fingerprint: "b.parquet"}),
]


@dataclass(frozen=True)
class WriteName:
    """Write the file of a part into each of its artifacts."""

    targets: Mapping[str, Artifact]

    def __call__(self, part: str) -> dict[str, float]:
        files = next(one.files for one in PARTS if one.part == part)
        for fingerprint, file in files.items():
            self.targets[fingerprint].write_table(f"rows/{file}", pa.table({"name": [part]}))
        return {self.targets[fingerprint].path: 3.0 if part == "b" else 1.0 for fingerprint in files}


def make(root: Path, workers: int = 1) -> dict[str, float]:
    context = Context(build(Job, {"name": "parts"}, "test"), Scale(), Store.at(str(root)))
    work = WriteName({step.fingerprint: context.artifact(step) for step in STEPS})
    return run_parts(context, STEPS, "rows", PARTS, "partitions", work, Pool(num_workers=workers, num_cpus=1))


def written(root: Path) -> dict[str, int]:
    """The files and when they were written."""
    return {str(file.relative_to(root)): file.stat().st_mtime_ns for file in root.rglob("*.parquet")}


@pytest.mark.parametrize("workers", [1, 2])
def test_run_parts_makes_each_part_and_divides_the_seconds(tmp_path: Path, workers: int) -> None:
    seconds = make(tmp_path, workers)
    small, large = STEPS
    files = [f"{small.folder}/rows/a.parquet", f"{large.folder}/rows/a.parquet", f"{large.folder}/rows/b.parquet"]
    assert sorted(written(tmp_path)) == sorted(files)
    assert seconds[large.fingerprint] == pytest.approx(4 * seconds[small.fingerprint])


def test_run_parts_repeats_only_parts_of_which_a_file_is_missing(tmp_path: Path) -> None:
    make(tmp_path)
    before = written(tmp_path)
    make(tmp_path)
    assert written(tmp_path) == before
    (tmp_path / STEPS[0].folder / "rows" / "a.parquet").unlink()
    make(tmp_path)
    after = written(tmp_path)
    assert after.keys() == before.keys()
    assert [Path(file).name for file in after if after[file] == before[file]] == ["b.parquet"]
