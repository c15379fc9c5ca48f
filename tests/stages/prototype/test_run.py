"""Tests of the task of one class: the files that it writes, and the seconds that it measures."""

from pathlib import Path

import pytest

from tests.engine.clock import set_clock
from tests.engine.member_rows import artifact
from tests.stages.prototype.test_cluster import OUTLIERS, SHAPE, make_latents, make_pairs
from vlcp_ray.stages.prototype import MEMBERS, prototypes_schema
from vlcp_ray.stages.prototype.cluster import prototype
from vlcp_ray.stages.prototype.run import PrototypeTask


def test_prototype_task_writes_every_run_and_returns_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by 1 s at each look: 1 s for each run, and a third of 1 s for what they share."""
    table, schema = make_pairs(make_latents(30)), prototypes_schema(SHAPE)
    runs = {run: artifact(tmp_path, f"{run}") for run in ((0, 2), (1, 2), (0, 5))}
    set_clock(monkeypatch, "vlcp_ray.stages.prototype.cluster", 1.0)
    seconds = PrototypeTask(OUTLIERS, None, runs, schema)(table)
    assert seconds == pytest.approx({made.path: 1 + 1 / 3 for made in runs.values()})
    expected = prototype(table, OUTLIERS, list(runs))
    for run, made in runs.items():
        assert made.table("prototypes", schema).equals(expected[run].prototypes)
        assert made.table("members", MEMBERS).equals(expected[run].members)
        assert [part.name for part in made.parts("prototypes")] == ["00007.parquet"]
