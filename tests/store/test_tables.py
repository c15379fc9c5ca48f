"""Tests of reading tables of strangers: extension types are refused at any depth, and no code of a file runs."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data  # noqa: F401  # registers the type whose values are unpickled
from pyarrow import parquet

from tests.engine.member_rows import artifact, members
from tests.hostile import with_pickled_column
from vlcp_ray.stages.prototype import MEMBERS
from vlcp_ray.store.io import StoreError
from vlcp_ray.store.tables import check_types

PACKAGE = Path(__file__).parents[2] / "vlcp_ray"
KINDS = {
    "plain": lambda kind: kind,
    "list": pa.list_,
    "large list": pa.large_list,
    "fixed-size list": lambda kind: pa.list_(kind, 2),
    "struct": lambda kind: pa.struct([("inner", pa.list_(kind))]),
    "map": lambda kind: pa.map_(pa.string(), kind),
    "union": lambda kind: pa.dense_union([pa.field("inner", kind)]),
}


@pytest.mark.parametrize("nested", KINDS)
def test_check_types_of_an_extension_type_at_any_depth_names_column_and_type(nested: str) -> None:
    schema = pa.schema([("a", pa.int64()), ("b", KINDS[nested](pa.uuid()))])
    expected = r"x\.parquet: column 'b' has the type arrow\.uuid, which is not read; do this"
    with pytest.raises(ValueError, match=expected):
        check_types(schema, None, "x.parquet", "do this")
    check_types(schema, ["a"], "x.parquet", "do this")


def test_check_types_of_our_types_accepts_them() -> None:
    tensor = pa.fixed_shape_tensor(pa.float32(), (4, 8, 8))
    kinds = [tensor, pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.struct([("x", pa.binary())]))]
    check_types(pa.schema([(str(number), kind) for number, kind in enumerate(kinds)]), None, "x", "")


@pytest.mark.parametrize("first", [True, False])
def test_table_with_pickled_values_runs_nothing_and_names_the_folder_to_remove(tmp_path: Path, first: bool) -> None:
    made = artifact(tmp_path, "made")
    made.write_table("members/b.parquet", members(3))
    poisoned = with_pickled_column(members(3), "image_id", tmp_path / "EXECUTED")
    parquet.write_table(poisoned, f"{made.path}/members/{'a' if first else 'c'}.parquet")
    with pytest.raises(StoreError, match=r"remove the folder .*/made-[0-9a-f]+ and re-run"):
        made.table("members", MEMBERS)["image_id"].to_pylist()
    assert not (tmp_path / "EXECUTED").exists()


#: Calls that run code of the file that they read, unless an argument forbids it.
UNSAFE = {
    r"\bpickle\.loads?\(": None,
    r"\bcloudpickle\b": None,
    r"\bjoblib\b": None,
    r"\bmarshal\b": None,
    r"\btorch\.load\(": "weights_only=True",
    r"\bnp\.load\(": "allow_pickle=False",
    r"\byaml\.(unsafe_|full_)?load\(": None,
    r"\btrust_remote_code=True": None,
}


@pytest.mark.parametrize("call", UNSAFE)
def test_package_never_runs_code_of_a_file(call: str) -> None:
    safe = UNSAFE[call]
    lines = [line for file in PACKAGE.rglob("*.py") for line in file.read_text().splitlines() if re.search(call, line)]
    assert [line for line in lines if safe is None or safe not in line] == []
