"""Tests of what the layouts of tables share."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.image_sets import open_set, picture, read_all
from vlcp_ray.settings import ConfigError


def write(root: Path, layout: str, name: str, table: pa.Table) -> None:
    """Write a table as a file of a layout, beside what marks a saved dataset."""
    root.mkdir(exist_ok=True)
    if layout == "parquet":
        parquet.write_table(table, root / f"{name}.parquet")
        return
    (root / "state.json").write_text("{}")
    with pa.ipc.new_stream(str(root / f"{name}.arrow"), table.schema) as writer:
        writer.write_table(table)


TABLE = pa.table({"image": [picture(1), picture(2)], "label": ["dog", "cat"]})


@pytest.mark.parametrize("layout", ["parquet", "arrow"])
def test_table_files_have_the_columns_of_the_first_that_can_be_read(tmp_path: Path, layout: str) -> None:
    write(tmp_path / "set", layout, "val-1", TABLE)
    (tmp_path / "set" / f"train-0.{layout}").write_bytes(b"x" * 100)
    source = open_set(tmp_path / "set")
    assert (source.layout, source.classes.keys, source.splits) == (layout, ("cat", "dog"), {"train", "val"})
    assert source.description.endswith("with 1 train file and 1 val file, 2 classes")
    assert sorted(read_all(source)["reason"].to_pylist()) == ["", "", "unreadable"]


@pytest.mark.parametrize(("layout", "kind"), [("parquet", "parquet"), ("arrow", "an Arrow stream")])
def test_table_files_none_of_which_can_be_read_are_refused(tmp_path: Path, layout: str, kind: str) -> None:
    write(tmp_path / "set", layout, "train", TABLE)
    (tmp_path / "set" / f"train.{layout}").write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match=rf"train\.{layout} cannot be read as {kind} \(.*\); download it again"):
        open_set(tmp_path / "set")


@pytest.mark.parametrize("layout", ["parquet", "arrow"])
def test_table_files_with_labels_of_another_type_are_refused(tmp_path: Path, layout: str) -> None:
    kind = pa.schema([("image", pa.binary()), ("label", pa.list_(pa.binary()))])
    write(tmp_path / "set", layout, "train", pa.table({"image": [b"x"], "label": [[b"x"]]}, schema=kind))
    with pytest.raises(ConfigError, match=r"column 'label' of the tables is list<.*>, not names or numbers"):
        open_set(tmp_path / "set")
