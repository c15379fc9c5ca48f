"""Whether a source gives the rows that it promises."""

import pyarrow.compute as pc
import pytest

from vlcp_ray.config import ConfigError
from vlcp_ray.sources import RAW, open_source


def test_the_digits_come_in_two_shards_with_exact_counts() -> None:
    source = open_source("digits")
    tables = {shard: source.read(shard) for shard in source.shards()}
    assert {shard: len(table) for shard, table in tables.items()} == {"train": 1297, "val": 500}
    assert {shard: source.count([shard]) for shard in source.shards()} == {"train": 1297, "val": 500}
    for shard, table in tables.items():
        assert table.schema == RAW
        assert pc.unique(table["split"]).to_pylist() == [shard]
        assert set(table["class_name"].to_pylist()) == set(source.class_names)
    ids = tables["train"]["image_id"].to_pylist() + tables["val"]["image_id"].to_pylist()
    assert len(set(ids)) == 1797


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(ConfigError, match=r"ingest.source: 'mnist' is not known"):
        open_source("mnist")
