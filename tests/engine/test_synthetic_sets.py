"""Tests of making several synthetic sets in one plan."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.engine.clock import set_clock
from vlcp_ray.config import Job
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.synthetic_sets import Assignment, AssignToSets, make_sets
from vlcp_ray.engine.writing import TARGET
from vlcp_ray.methods.synthetic_rows import from_prototypes
from vlcp_ray.models.stable_diffusion import Pictures
from vlcp_ray.scale import Scale
from vlcp_ray.schemas import SYNTHETIC, tensor_array
from vlcp_ray.settings import build
from vlcp_ray.store.artifact import Step, Store


def test_assign_to_sets_adds_target_and_seed_and_drops_done_rows() -> None:
    paths = ["/root/prototype-a/prototypes/0.parquet"] * 2 + ["/root/prototype-b/prototypes/0.parquet"] * 2
    block = pa.table({"prototype_id": ["p0", "p1", "p0", "p1"], "path": paths})
    none, some = pa.array([], pa.string()), pa.array(["p1"], pa.string())
    assignments = {"/root/prototype-a": Assignment("one", 3, none), "/root/prototype-b": Assignment("two", 4, some)}
    assigned = AssignToSets(assignments)(block).select(["prototype_id", TARGET, "seed"]).to_pylist()
    assert [tuple(row.values()) for row in assigned] == [("p0", "one", 3), ("p1", "one", 3), ("p0", "two", 4)]


class Grey:
    """Make a grey image from each prototype."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __call__(self, table: pa.Table) -> pa.Table:
        pictures = Pictures(np.full((len(table), 8, 8, 3), 99, np.uint8), [])
        return from_prototypes(table, "grey", pictures, 8, [""] * len(table), [0] * len(table))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("default")
def test_make_sets_shares_the_time_by_the_images_of_the_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(build(Job, {"name": "x"}, "x"), Scale(), Store.at(str(tmp_path)))
    steps = []
    for ipc in (1, 5):
        prototypes = Step("prototype", 1, {}, {"ipc": ipc})
        columns = {
            "prototype_id": [f"p{number}" for number in range(ipc)],
            "label": pa.array(range(ipc), pa.int32()),
            "class_name": ["cat"] * ipc,
            "latent": tensor_array(np.zeros((ipc, 1, 1, 1), np.float32)),
        }
        context.artifact(prototypes).write_table("prototypes/0.parquet", pa.table(columns))
        context.complete(prototypes, rows_in=ipc, rows=ipc, seconds=1.0)
        steps.append(Step("generate", 1, {}, {"ipc": ipc, "seed": 0}, {"prototypes": prototypes}))
    set_clock(monkeypatch, "vlcp_ray.engine.streaming", 12.0)
    make_sets(context, steps, f"{__name__}:Grey", {})
    assert [context.manifest(step)["seconds"] for step in steps] == [2.0, 10.0]
    assert [len(context.artifact(step).table("synthetic", SYNTHETIC)) for step in steps] == [1, 5]
