"""Tests of making several synthetic sets in one plan."""

import pyarrow as pa

from vlcp_ray.engine.synthetic_sets import Assignment, AssignToSets
from vlcp_ray.engine.writing import TARGET


def test_assign_to_sets_adds_target_and_seed_and_drops_done_rows() -> None:
    paths = ["/root/prototype-a/prototypes/0.parquet"] * 2 + ["/root/prototype-b/prototypes/0.parquet"] * 2
    block = pa.table({"prototype_id": ["p0", "p1", "p0", "p1"], "path": paths})
    none, some = pa.array([], pa.string()), pa.array(["p1"], pa.string())
    assignments = {"/root/prototype-a": Assignment("one", 3, none), "/root/prototype-b": Assignment("two", 4, some)}
    assigned = AssignToSets(assignments)(block).select(["prototype_id", TARGET, "seed"]).to_pylist()
    assert [tuple(row.values()) for row in assigned] == [("p0", "one", 3), ("p1", "one", 3), ("p0", "two", 4)]
