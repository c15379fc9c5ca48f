"""Tests of saved captions: tables by image_id or file name, missing and repeated ones, and their files."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.hostile import with_pickled_column
from tests.s3 import Proxy
from vlcp_ray.demo import digits
from vlcp_ray.schemas import IMAGES, conform, reject
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.pair.saved_captions import CaptionTable, LoadSavedCaptions, check_names, open_captions
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.files import write
from vlcp_ray.store.io import AccessError, open_uri


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """The first twelve digits of val."""
    return conform(pa.Table.from_pylist(list(digits.rows("val"))[:12]), IMAGES)


def caption_table(texts: dict[str, str]) -> pa.Table:
    """Make a table of captions by image_id."""
    return pa.table({"caption": list(texts.values()), "image_id": list(texts)})


def test_caption_table_joins_by_image_id(table: pa.Table) -> None:
    ids = table["image_id"].to_pylist()
    texts = {image_id: f"text of {image_id}" for image_id in [*ids[::-1], "another"]}
    captioned = CaptionTable(caption_table(texts))(table)
    assert captioned.select(table.column_names).equals(table)
    assert captioned["caption"].to_pylist() == [texts[image_id] for image_id in ids]
    assert set(captioned["reason"].to_pylist()) == {""}


def test_caption_table_rejects_images_without_caption(table: pa.Table) -> None:
    ids = table["image_id"].to_pylist()
    texts = {image_id: f"text of {image_id}" for image_id in ids[2:]} | {ids[3]: " \n"}
    marked = reject(table, {0: ("undecodable", "before"), 5: ("undecodable", "before")})
    captioned = CaptionTable(caption_table(texts))(marked)
    expected = {0: "undecodable", 1: "missing_caption", 3: "empty_caption", 5: "undecodable"}
    assert captioned["image_id"].equals(table["image_id"])
    assert captioned["reason"].to_pylist() == [expected.get(row, "") for row in range(len(ids))]
    captions = ["" if row in expected else texts[ids[row]] for row in range(len(ids))]
    assert captioned["caption"].to_pylist() == captions


def test_caption_table_accepts_chunks_nulls_and_no_rows(table: pa.Table) -> None:
    ids = table["image_id"].to_pylist()
    halves = [caption_table({ids[0]: "a"}), pa.table({"caption": pa.array([None], pa.string()), "image_id": [ids[1]]})]
    captions = CaptionTable(pa.concat_tables(halves))
    assert captions(table.slice(0, 2))["caption"].to_pylist() == ["a", ""]
    assert captions(table.slice(0, 2))["reason"].to_pylist() == ["", "empty_caption"]
    assert captions(table.slice(0, 0)).schema.equals(captions(table).schema)
    empty = CaptionTable(pa.table({"image_id": pa.array([], pa.string()), "caption": pa.array([], pa.string())}))
    assert set(empty(table)["reason"].to_pylist()) == {"missing_caption"}


@pytest.mark.parametrize(
    ("file_names", "ids"),
    [
        (
            ["n01440764_1.JPEG", "n01440764_2.JPEG"],
            ["train/n01440764/n01440764_1.JPEG", "train/n01440764/n01440764_2.JPEG"],
        ),
        (["n01440764_1.JPEG"], ["train/n01440764/n01440764_1_n01440764.JPEG"]),  # as in the hub's parquet
        (["images/n01440764/n01440764_1.JPEG"], ["train/n01440764/n01440764_1"]),  # as a tar's key
        (["cat/1.jpg", "dog/1.jpg"], ["train/cat/1.jpg", "train/dog/1.jpg"]),
    ],
)
def test_caption_table_of_released_code_joins_by_file_name(file_names: list[str], ids: list[str]) -> None:
    texts = [f"text of {name}" for name in file_names]
    captions = CaptionTable(pa.table({"file_name": file_names[::-1], "text": texts[::-1]}))
    captioned = captions(pa.table({"image_id": [*ids, "train/cow/7.jpg"]}))
    assert captioned["caption"].to_pylist() == [*texts, ""]
    assert captioned["reason"].to_pylist() == [""] * len(ids) + ["missing_caption"]


def test_caption_table_file_name_of_two_images_is_refused() -> None:
    in_folders = CaptionTable(pa.table({"file_name": ["cat/1.jpg", "dog/2.jpg"], "text": ["a", "b"]}))
    captioned = in_folders(pa.table({"image_id": ["train/dog/1.jpg", "train/cat/1.jpg"]}))
    assert captioned["reason"].to_pylist() == ["missing_caption", ""]
    flat = CaptionTable(pa.table({"file_name": ["1.jpg"], "text": ["a"]}))
    with pytest.raises(ValueError, match=r"'1' matches train/cat/1\.jpg and train/dog/1\.jpg; write"):
        flat(pa.table({"image_id": ["train/cat/1.jpg", "train/dog/1.jpg"]}))
    with pytest.raises(ConfigError, match=r"'1' matches train/cat/1\.jpg and train/dog/1\.jpg; write"):
        flat(pa.table({"image_id": ["train/cat/1.jpg", "train/dog/1.jpg", "train/elk/1.jpg"]}))


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (pa.table({"image_id": ["a"], "text": ["b"]}), "lacks caption"),
        (pa.table({"x": [1]}), "lacks file_name and text; it has x, but needs image_id and caption, or"),
        (pa.table({"file_name": ["1.jpg", "1.png"], "text": ["a", "b"]}), "'1'"),
        (pa.table({"image_id": ["a", "b", "b"], "caption": ["1", "2", "2"]}), "'b'"),
    ],
)
def test_caption_table_with_missing_columns_or_repeated_ids_is_refused(captions: pa.Table, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionTable(captions)


def test_load_saved_captions_reads_parquet_and_json_lines(tmp_path: Path) -> None:
    table = pa.table({"image_id": ["train/cat/1.jpg", "train/cat/2.jpg"], "reason": ["", ""]})
    parquet.write_table(pa.table({"image_id": table["image_id"], "caption": ["one", "two"]}), tmp_path / "a.parquet")
    lines = [{"file_name": "cat/2.jpg", "text": "two"}, {"file_name": "cat/1.jpg", "text": "one"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("a.parquet", "metadata.jsonl"):
        assert LoadSavedCaptions(str(tmp_path / name))(table)["caption"].to_pylist() == ["one", "two"]


def test_open_captions_of_other_files_names_the_formats(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("image_id,caption")
    with pytest.raises(ConfigError, match=r"a\.tsv cannot be read as parquet \(JSON lines end in \.jsonl, CSV in"):
        open_captions(str(tmp_path / "a.tsv"))
    with pytest.raises(ConfigError, match=r"missing\.jsonl cannot be read as JSON lines"):
        open_captions(str(tmp_path / "missing.jsonl"))


@pytest.mark.parametrize(("name", "kind"), [("a.parquet", "parquet"), ("metadata.jsonl", "JSON lines")])
def test_open_captions_of_s3_reads_them_or_names_the_fix(s3_proxy: Proxy, tmp_path: Path, name: str, kind: str) -> None:
    uri = s3_proxy.uri(f"captions{tmp_path}/{name}")
    with pytest.raises(ConfigError, match=rf"caption\.source: .*{name}\S* cannot be read as {kind}"):
        open_captions(uri)
    sink = pa.BufferOutputStream()
    parquet.write_table(caption_table({"a": "text"}), sink)
    content = memoryview(sink.getvalue()) if name == "a.parquet" else b'{"image_id": "a", "caption": "text"}\n'
    write(*open_uri(uri, "caption.source"), content)
    assert open_captions(uri).to_table().to_pylist() == [{"image_id": "a", "caption": "text"}]
    s3_proxy.set_faults(deny=[400, "ExpiredToken", "old"])
    with pytest.raises(AccessError, match=r"cannot read caption\.source .*ExpiredToken: old; .*renew the credentials"):
        open_captions(uri)


def test_open_captions_of_an_unknown_scheme_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"^caption\.source nope://x: .*; give a folder or a URI"):
        open_captions("nope://x")


def test_open_captions_of_pickled_objects_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    import ray.data  # noqa: F401  # registers the type, as in the workers of pair

    poisoned = with_pickled_column(caption_table({"a": "text"}), "caption", tmp_path / "EXECUTED")
    parquet.write_table(poisoned, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"caption\.source: .* column 'caption' has the type ray\.data"):
        LoadSavedCaptions(str(tmp_path / "a.parquet"))
    assert not (tmp_path / "EXECUTED").exists()


def test_caption_table_that_keeps_missing_images_gives_them_no_caption(table: pa.Table) -> None:
    ids = table["image_id"].to_pylist()
    captioned = CaptionTable(caption_table({ids[1]: "one", ids[2]: " "}), keeps_missing=True)(table)
    assert captioned["caption"].to_pylist()[:4] == ["", "one", "", ""]
    assert set(captioned["reason"].to_pylist()) == {""}


def test_caption_table_in_another_case_is_refused(table: pa.Table) -> None:
    ids = [image_id.upper() for image_id in table["image_id"].to_pylist()]
    with pytest.raises(ValueError, match=f"the table has '{ids[0]}' and the image set '.*'; write names in the same"):
        CaptionTable(caption_table(dict.fromkeys(ids, "x")))(table)


def test_load_saved_captions_reads_metadata_csv(tmp_path: Path, table: pa.Table) -> None:
    ids = table["image_id"].to_pylist()
    lines = ["file_name,label,text", *(f'{image_id}.png,x,"a, {row}"' for row, image_id in enumerate(ids))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    captions = LoadSavedCaptions(str(tmp_path / "metadata.csv"))(table)["caption"].to_pylist()
    assert captions == [f"a, {row}" for row in range(len(ids))]


@pytest.mark.parametrize(
    ("table_of_captions", "message"),
    [
        (
            pa.table({"image_id": ["a"], "caption": [["x", "y"]]}),
            r"column 'caption' of the table is list<.*>, not text",
        ),
        (pa.table({"image_id": ["a"], "caption": [b"x"]}), "column 'caption' of the table is binary, not text"),
        (
            pa.table({"image_id": pa.array([b"a"], pa.binary_view()), "caption": ["x"]}),
            "column 'image_id' of the table is binary_view, not text",
        ),
        (
            pa.table({"image_id": ["a"], "caption": pa.array([b"\xff"]).dictionary_encode()}),
            "column 'caption' of the table is dictionary<.*>, not text",
        ),
        (
            pa.table({"image_id": ["a"], "caption": pa.array([b"\xff"], pa.binary(1))}),
            "column 'caption' of the table is fixed_size_binary.*, not text",
        ),
    ],
)
def test_caption_table_of_other_types_is_refused(table_of_captions: pa.Table, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionTable(table_of_captions)


def test_load_saved_captions_that_are_no_utf8_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"image_id,caption\n" + b"a,b\n" * 300_000 + b"x,\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"caption\.source: .*a\.csv cannot be read"):
        LoadSavedCaptions(str(tmp_path / "a.csv"))


IDS = ["train/cat/Cat1.jpg", "train/cat/cat2.jpg", "train/dog/d1.png"]
THREE = pa.table({"image_id": IDS, "reason": [""] * 3})


def write_captions(folder: Path, suffix: str, encoding: str, text: str = "caf\u00e9, {}") -> str:
    """Write captions of the three images as CSV or JSON lines, and return the file's path."""
    rows = [{"image_id": image_id, "caption": text.format(number)} for number, image_id in enumerate(IDS)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if suffix.lower() == ".csv":
        lines = ["image_id,caption", *(f'{row["image_id"]},"{row["caption"]}"' for row in rows)]
    path = folder / f"captions{suffix}"
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".CSV", ".JSONL"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_load_saved_captions_reads_utf8_with_and_without_a_mark(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = write_captions(tmp_path, suffix, encoding)
    captions = LoadSavedCaptions(path)(THREE)["caption"].to_pylist()
    assert captions == ["caf\u00e9, 0", "caf\u00e9, 1", "caf\u00e9, 2"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_load_saved_captions_in_another_encoding_is_refused(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = write_captions(tmp_path, suffix, encoding)
    with pytest.raises(ConfigError, match=r"^caption\.source: .* its text is not UTF-8; save it as UTF-8$"):
        LoadSavedCaptions(path)
    if (suffix, encoding) != (".jsonl", "latin-1"):  # Arrow looks at the text of JSON only when it is used
        with pytest.raises(ConfigError, match=r"is not UTF-8; save it as UTF-8$"):
            open_captions(path)


def test_load_saved_captions_of_csv_takes_names_and_captions_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image_id,caption\n007,12\n08,"two\nlines"\n2020-01-01,NA\n')
    table = pa.table({"image_id": ["007", "08", "2020-01-01", "7"], "reason": [""] * 4})
    captioned = LoadSavedCaptions(str(tmp_path / "a.csv"))(table)
    assert captioned["caption"].to_pylist() == ["12", "two\nlines", "NA", ""]
    (tmp_path / "dates.jsonl").write_text('{"image_id": "2020-01-01", "caption": "2021-02-03"}\n')
    captioned = LoadSavedCaptions(str(tmp_path / "dates.jsonl"))(table)
    assert captioned["caption"].to_pylist() == ["", "", "2021-02-03", ""]


def test_load_saved_captions_of_csv_in_blocks_keeps_captions_of_several_lines(tmp_path: Path) -> None:
    rows = [*IDS, *(f"other/{number}.jpg" for number in range(60_000))]
    caption = "one line,\nand another,\nand a third\nand a last"
    lines = (f'{name},"{caption}"' for name in rows)  # 4 MiB, several blocks of Arrow
    (tmp_path / "a.csv").write_text("\n".join(["image_id,caption", *lines]))
    captions = LoadSavedCaptions(str(tmp_path / "a.csv"))
    assert captions(THREE)["caption"].to_pylist() == [caption] * 3
    assert len(captions.captions.index) == len(rows)


@pytest.mark.parametrize("names", [("Image_ID", "Caption"), ("image_id", " caption"), ("file_name", "caption")])
def test_load_saved_captions_finds_columns_whose_meaning_is_plain(tmp_path: Path, names: tuple[str, str]) -> None:
    table = pa.table([IDS, ["a", "b", "c"]], list(names))
    parquet.write_table(table, tmp_path / "a.parquet")
    assert LoadSavedCaptions(str(tmp_path / "a.parquet"))(THREE)["caption"].to_pylist() == ["a", "b", "c"]


def test_open_captions_with_other_columns_lists_those_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image_id,description\nx,y\n")
    with pytest.raises(ConfigError, match=r"^caption\.source: the table lacks caption; it has image_id, description, "):
        open_captions(str(tmp_path / "a.csv"))
    many = pa.table({f"column{number}": [1] for number in range(40)})
    parquet.write_table(many, tmp_path / "many.parquet")
    with pytest.raises(
        ConfigError, match=r"it has column0, .*, column9 and 30 more, but needs image_id and caption, or"
    ):
        open_captions(str(tmp_path / "many.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="it has no columns, but needs"):
        open_captions(str(tmp_path / "empty"))


@pytest.mark.parametrize("caption", [["a", "b"], [{"raw": "a"}], {"raw": "a"}])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_open_captions_of_lists_and_records_asks_for_one_text(tmp_path: Path, name: str, caption: object) -> None:
    rows = [{"image_id": image_id, "caption": caption} for image_id in IDS]
    if name == "a.jsonl":
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    with pytest.raises(
        ConfigError, match=r"^caption\.source: column 'caption' .*, not text; write one caption for each"
    ):
        open_captions(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"image_id": "x", "caption": "y"}]', "JSON lines: .*; write one JSON object a line$"),
        ("a.csv", "image_id,caption\nx,a cat, red\n", "CSV: .*; put captions with commas in double quotes$"),
        ("a.jsonl", "", "JSON lines: Empty JSON stream; write one JSON object a line$"),
        ("a.csv", "", "CSV: it is empty; write image_id,caption in its first line, and then a row for each image$"),
        ("a.csv", "image_id,text,text\n", "CSV: two of its columns are named 'text'; rename or remove one of them$"),
        ("a.jsonl", '{"text": "x", "text": "y"}', "JSON lines: a row has 'text' twice; rename or remove one of them$"),
        (
            "a.csv",
            "image_id;caption\nx;a cat, red\n",
            "CSV: its first line has no comma; separate the columns with commas, or save it as JSON lines$",
        ),
    ],
)
def test_open_captions_that_are_not_of_the_format_names_the_fix(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"^caption\.source: .* cannot be read as {message}"):
        open_captions(str(tmp_path / name))


def test_open_captions_of_parquet_with_two_columns_of_a_name_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["x"])] * 3, names=["image_id", "caption", "caption"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r": two of its columns have the same name; rename or remove one of them$"):
        open_captions(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("names", [["image_id", "Caption", "CAPTION"], ["image_id", "caption", "caption"]])
def test_caption_table_with_two_columns_for_one_is_refused(names: list[str]) -> None:
    table = pa.Table.from_arrays([pa.array(["x"])] * 3, names=names)
    with pytest.raises(
        ConfigError, match=f"table has the columns '{names[1]}' and '{names[2]}'; rename or remove one of"
    ):
        CaptionTable(table)


def test_caption_table_prefers_the_column_that_is_written_as_documented() -> None:
    table = pa.table({"image_id": IDS, "Caption": ["x"] * 3, "caption": ["a", "b", "c"]})
    assert CaptionTable(table)(THREE)["caption"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_open_captions_with_other_separators_names_the_fix(tmp_path: Path, mark: str, name: str) -> None:
    (tmp_path / "a.csv").write_text(f"image_id{mark}caption\nx{mark}a cat\n")
    with pytest.raises(
        ConfigError, match=rf"^caption\.source: .* separated by {name}; save it with commas, or as JSON lines$"
    ):
        open_captions(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_load_saved_captions_reads_every_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    names, texts = pa.array([None, *IDS], pa.string()), pa.array(["x", "a", None, "c"], pa.string())
    table = pa.table({"image_id": names.cast(kind), "caption": texts.cast(kind)})
    assert CaptionTable(table)(THREE)["caption"].to_pylist() == ["a", "", "c"]
    parquet.write_table(table, tmp_path / "a.parquet")
    assert LoadSavedCaptions(str(tmp_path / "a.parquet"))(THREE)["caption"].to_pylist() == ["a", "", "c"]


MANY = "".join(f"other/{number}.jpg,a cat on a mat and a dog in a field\n" for number in range(40_000))  # over 1 MiB


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (f'{IDS[0]},"a cat\n{IDS[1]},a dog\n', 2),
        (f'{IDS[0]},"a cat\n{IDS[1]},"a dog"\n', 2),
        (f'{IDS[0]},"a cat"\n{IDS[1]},"a\n\ndog"\n{IDS[2]},"an elk', 6),
        (f'{IDS[0]},"a cat" on a mat, asleep\n', 2),
        (f'{IDS[0]},"a \\"cat\\" on a mat"\n', 2),
        (f'{IDS[0]},x\r\n{IDS[1]},"a cat\r\n', 3),
        (f'{MANY}{IDS[0]},"a cat\n{IDS[1]},a dog\n', 40_002),
    ],
)
def test_load_saved_captions_of_csv_with_an_open_quote_names_the_row(tmp_path: Path, rows: str, line: int) -> None:
    (tmp_path / "a.csv").write_bytes(f"image_id,caption\n{rows}".encode())
    with pytest.raises(
        ConfigError,
        match=rf"^caption\.source: .*a\.csv cannot be read as CSV: in the row that begins in line {line}, double "
        r"quotes are not closed where their column ends; close them there, and write those within a caption twice "
        r'\(""\)$',
    ):
        LoadSavedCaptions(str(tmp_path / "a.csv"))


def test_load_saved_captions_of_csv_with_an_open_quote_in_another_column_or_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a.csv"
    folder.mkdir()
    (folder / "1.csv").write_text(f"image_id,caption,note\n{IDS[0]},a cat,x\n")
    (folder / "2.csv").write_text(f'image_id,caption,note\n{IDS[1]},a dog,"x\n{IDS[2]},an elk,y\n')
    with pytest.raises(
        ConfigError, match=r"in the row that begins in line 2 of .*2\.csv, double quotes are not closed"
    ):
        LoadSavedCaptions(str(folder))


def test_open_captions_of_csv_with_much_text_behind_an_open_quote_names_the_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f'image_id,caption\n{IDS[0]},"a cat\n{MANY}{MANY}')
    with pytest.raises(ConfigError, match=r"in the row that begins in line 2, a column has more than 2 MiB; close its"):
        open_captions(str(tmp_path / "a.csv"))


def test_load_saved_captions_of_csv_reads_quotes_that_are_closed(tmp_path: Path) -> None:
    long, limit = "two words, " * 50_000, csv.field_size_limit()
    rows = f'{IDS[0]},"{long}"\n{IDS[1]},"a ""5"" inch\nnail"\n"{IDS[2]}",a 5" nail\n'
    (tmp_path / "a.csv").write_text(f"\ufeffimage_id,caption\n{rows}")
    captions = LoadSavedCaptions(str(tmp_path / "a.csv"))(THREE)["caption"].to_pylist()
    assert captions == [long, 'a "5" inch\nnail', 'a 5" nail']
    assert csv.field_size_limit() == limit


def test_load_saved_captions_of_csv_with_a_late_comma_is_not_said_to_have_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"image_id,caption\n{MANY}{IDS[0]},a cat, red\n")
    with pytest.raises(ConfigError, match=r"as CSV: .* Expected 2 columns, got 3.*; put captions with"):
        LoadSavedCaptions(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("rows", [1, 40_000])  # in the first block of Arrow, and in a later one
def test_load_saved_captions_of_json_with_a_number_asks_for_text(tmp_path: Path, rows: int) -> None:
    lines = [f'{{"image_id": "{number}", "caption": "a cat on a mat"}}\n' for number in range(rows)]
    (tmp_path / "a.jsonl").write_text("".join(lines) + '{"image_id": "x", "caption": 5}\n')
    with pytest.raises(
        ConfigError, match=r"JSON lines: 'caption' changes from string to number; write it as text in each row$"
    ):
        LoadSavedCaptions(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    "names",
    [
        ["cat/Cat1.jpg", "cat/cat2.jpg", "dog/d1.png"],
        ["Cat1.jpg", "cat2.jpg", "d1.png"],
        ["./Cat1.jpg", "./cat2.jpg", "././d1.png"],
        ["./cat/Cat1.jpg", "./cat/cat2.jpg", "./dog/d1.png"],
        ["cat\\Cat1.jpg", "cat\\cat2.jpg", ".\\dog\\d1.png"],
        ["C:\\data\\cat\\Cat1.jpg", "C:\\data\\cat\\cat2.jpg", "C:\\data\\dog\\d1.png"],
        ["cat/Cat1.JPG", "cat/cat2.webp", "dog/d1"],
        ["/data/train/cat/Cat1.jpg", "/data/train/cat/cat2.jpg", "/data/train/dog/d1.png"],
    ],
)
def test_caption_table_finds_file_names_however_their_paths_are_written(names: list[str]) -> None:
    captions = CaptionTable(pa.table({"file_name": names, "text": ["a", "b", "c"]}))
    assert captions(THREE)["caption"].to_pylist() == ["a", "b", "c"]


def test_caption_table_finds_ids_with_backslashes_and_leading_dots() -> None:
    names = [f"./{IDS[0]}", IDS[1].replace("/", "\\"), IDS[2]]
    assert CaptionTable(caption_table(dict.fromkeys(names, "x")))(THREE)["caption"].to_pylist() == ["x"] * 3


@pytest.mark.parametrize("name", ["cat/cat1.jpg", "Cat/Cat1.jpg", "CAT/CAT1.JPG"])
def test_caption_table_with_one_name_in_another_case_is_refused(name: str) -> None:
    captions = CaptionTable(pa.table({"file_name": [name, "cat/cat2.jpg", "dog/d1.png"], "text": ["a", "b", "c"]}))
    stem = name.partition(".")[0]
    with pytest.raises(
        ConfigError, match=rf"^caption\.source: the table has '{stem}' and the image set 'cat/Cat1'; wri"
    ):
        captions(THREE)


def test_caption_table_distinguishes_images_whose_names_differ_in_their_case() -> None:
    images = pa.table({"image_id": ["a/x.jpg", "a/X.jpg"], "reason": ["", ""]})
    captioned = CaptionTable(caption_table({"a/x.jpg": "small", "a/X.jpg": "large"}))(images)
    assert captioned["caption"].to_pylist() == ["small", "large"]


def test_caption_table_leaves_out_rows_without_a_name() -> None:
    captions = CaptionTable(pa.table({"file_name": ["cat/Cat1.jpg", None, None], "text": ["a", "b", "c"]}))
    assert captions(THREE)["caption"].to_pylist() == ["a", "", ""]


def write_images(folder: Path, train: list[str], val: list[str]) -> Artifact:
    filesystem, path = open_uri(str(folder), "--root")
    artifact = Artifact(filesystem, path)
    for split, ids in {"train": train, "val": val}.items():
        rows = [{"image_id": image_id, "split": split, "label": 0, "class_name": "x", "source": ""} for image_id in ids]
        images = conform(pa.Table.from_pylist([row | {"image": b""} for row in rows]), IMAGES)
        artifact.write_table(f"images/{split}.parquet", images)
    return artifact


def test_check_names_counts_the_training_images_of_the_table(tmp_path: Path) -> None:
    parquet.write_table(caption_table({IDS[0]: "a", IDS[2]: "b", "val/x.jpg": "c"}), tmp_path / "a.parquet")
    images = write_images(tmp_path / "images", IDS, ["val/x.jpg"])
    assert check_names(str(tmp_path / "a.parquet"), images) == (3, 2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["1", "2"],
            "none of the 3 training images is in .*a.parquet, whose first name is '1'; theirs is 'train/cat/Ca",
        ),
        (
            [],
            "none of the 3 training images is in .*a.parquet, which has no rows; theirs is .*: write names as the",
        ),
        (
            [*IDS[1:], IDS[0].lower()],
            "the table has 'train/cat/cat1.jpg' and the image set 'train/cat/Cat1.jpg'; write",
        ),
    ],
)
def test_check_names_that_are_not_those_of_the_images_is_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    empty = caption_table({"a": "b"}).slice(0, 0)
    parquet.write_table(caption_table(dict.fromkeys(names, "x")) if names else empty, tmp_path / "a.parquet")
    images = write_images(tmp_path / "images", IDS, ["val/x.jpg"])
    with pytest.raises(ConfigError, match=rf"^caption\.source: {message}"):
        check_names(str(tmp_path / "a.parquet"), images)
