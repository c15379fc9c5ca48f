"""Tests of the columns of tables of images."""

import pyarrow as pa
import pytest

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Glossary
from vlcp_ray.sources.table_columns import Columns, class_keys, file_names, find_columns, names_differ

KNOWN = Glossary({"cat": "cat", "dog": "dog"}, ("cat", "dog"))
NAMED, NUMBERED = Columns("image", "label", (), ("image",)), Columns("image", "label", ("cat", "dog"), ("image",))


@pytest.mark.parametrize(
    ("labels", "keys"),
    [
        (pa.array([0, 1, None, -1, 5]), ["cat", "dog", None, None, "#5"]),
        (pa.array([0.0, 1.0, None, float("nan"), 0.5]), ["cat", "dog", None, None, None]),
        (pa.array([False, True, None]), ["cat", "dog", None]),
        (pa.array([1, 0], pa.uint8()).dictionary_encode(), ["dog", "cat"]),
        (pa.array([[0], [1], [], [0, 1], None, [None]]), ["cat", "dog", None, None, None, None]),
    ],
)
def test_class_keys_of_label_numbers(labels: pa.Array, keys: list[str | None]) -> None:
    assert class_keys(labels, NUMBERED, KNOWN) == keys
    assert class_keys(labels.slice(1), NUMBERED, KNOWN) == keys[1:]


@pytest.mark.parametrize(
    ("labels", "keys"),
    [
        (pa.array(["cat", "", None, "x" * 2000]), ["cat", None, None, None]),
        (pa.array(["cat", "dog"]).dictionary_encode(), ["cat", "dog"]),
        (
            pa.array([["cat"], ["cat", "dog"], [], ["dog"]], pa.large_list(pa.large_string())),
            ["cat", None, None, "dog"],
        ),
    ],
)
def test_class_keys_of_label_names(labels: pa.Array, keys: list[str | None]) -> None:
    assert class_keys(labels, NAMED, KNOWN) == keys


@pytest.mark.parametrize(
    ("kind", "is_read"),
    [
        (pa.int64(), True),
        (pa.float32(), True),
        (pa.bool_(), True),
        (pa.string(), True),
        (pa.list_(pa.int64()), True),
        (pa.dictionary(pa.int8(), pa.string()), True),
        (pa.struct([("id", pa.int64())]), False),
        (pa.list_(pa.list_(pa.int64())), False),
        (pa.binary(), False),
        (pa.timestamp("s"), False),
    ],
)
def test_find_columns_reads_labels_whose_meaning_is_plain(kind: pa.DataType, is_read: bool) -> None:
    schema = pa.schema([("image", pa.binary()), ("label", kind)])
    if is_read:
        assert find_columns(schema, KNOWN, "").label == "label"
    else:
        with pytest.raises(ConfigError, match=r"column 'label' of the tables is .*, not names or numbers"):
            find_columns(schema, KNOWN, "")


def test_find_columns_finds_the_image_by_its_bytes_wherever_they_stand() -> None:
    for fields in ([("bytes", pa.binary()), ("path", pa.string())], [("path", pa.string()), ("bytes", pa.binary())]):
        schema = pa.schema([("picture", pa.struct(fields)), ("label", pa.string())])
        assert find_columns(schema, KNOWN, "").image == "picture"


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.int8())])
def test_find_columns_of_numbers_without_names_asks_for_them(kind: pa.DataType) -> None:
    schema = pa.schema([("image", pa.binary()), ("label", kind)])
    with pytest.raises(ConfigError, match="the label numbers in column 'label' have no names"):
        find_columns(schema, Glossary({}), "")


def named(*names: str | None) -> pa.Array:
    """Return images with file names."""
    return pa.array([{"path": name} for name in names], pa.struct([("path", pa.string())]))


@pytest.mark.parametrize(
    ("batches", "differ"),
    [
        ([], True),
        ([named("a"), named("a")], False),
        ([named("a"), named("b")], True),
        ([named("a"), named(None), named("", None), named("a")], False),
        ([named("a")], True),
        ([named("a", "a"), named("b")], False),
        ([named("a", "b")], True),
        ([named(None)] * 16 + [named("a", "a")], True),
        ([pa.array([b"x", b"y"])], True),
    ],
)
def test_names_differ_if_the_first_two_are_not_equal(batches: list[pa.Array], differ: bool) -> None:
    assert names_differ(batches) is differ


def test_names_differ_reads_no_more_than_two_names() -> None:
    batches = iter([named("a"), named("b"), named("c")])
    assert names_differ(batches)
    assert len(list(batches)) == 1


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (named("a", None, "x" * 5_000), ["a", None, None]),
        (pa.array([{"bytes": b"x"}]), [None]),
        (pa.array([b"x", b"y"]), [None, None]),
        (pa.array([{"bytes": b"x", "path": 1}]), [None]),
        (named("a", "b").slice(1), ["b"]),
    ],
)
def test_file_names_are_those_that_are_text(images: pa.Array, names: list[str | None]) -> None:
    assert file_names(images) == names


def test_class_keys_of_a_name_of_10_mb_in_20_000_rows_are_missing_labels() -> None:
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000 + [1], pa.int16()), ["x" * 10_000_000, "cat"])
    assert class_keys(labels, NAMED, KNOWN) == [None] * 20_000 + ["cat"]
