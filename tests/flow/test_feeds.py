"""Whether plans begin with the right rows for the right sets."""

import pyarrow as pa

from vlcp_ray.demo import digits
from vlcp_ray.flow.data import TARGET
from vlcp_ray.flow.feeds import Chosen, ReadShard, Route, Routed
from vlcp_ray.sources import open_source


def test_a_shard_is_read_by_its_name() -> None:
    assert len(ReadShard(open_source("digits"))(pa.table({"item": ["val"]}))) == digits.VAL_IMAGES


def test_a_row_chosen_for_two_sets_comes_twice() -> None:
    rows = pa.Table.from_pylist([dict(row) for row in digits.rows("val")][:4])
    ids = rows["image_id"].to_pylist()
    made = Chosen({"small": ids[:1], "large": ids[:3]})(rows).select(["image_id", TARGET]).to_pylist()
    expected = [(ids[0], "small"), *((image_id, "large") for image_id in ids[:3])]
    assert [(row["image_id"], row[TARGET]) for row in made] == expected


def test_prototypes_go_to_the_set_of_their_artifact_unless_they_are_there() -> None:
    paths = ["/root/prototype-a/prototypes/0.parquet"] * 2 + ["/root/prototype-b/prototypes/0.parquet"] * 2
    block = pa.table({"prototype_id": ["p0", "p1", "p0", "p1"], "path": paths})
    none, some = pa.array([], pa.string()), pa.array(["p1"], pa.string())
    routes = {"/root/prototype-a": Route("one", 3, none), "/root/prototype-b": Route("two", 4, some)}
    made = Routed(routes)(block).select(["prototype_id", TARGET, "seed"]).to_pylist()
    assert [tuple(row.values()) for row in made] == [("p0", "one", 3), ("p1", "one", 3), ("p0", "two", 4)]
