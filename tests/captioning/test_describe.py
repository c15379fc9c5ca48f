"""Tests of captioning a set without a job: the table, its resume, and previews."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.image_sets import picture, write_files
from vlcp_ray.captioning.command import caption as run
from vlcp_ray.captioning.describe import describe, preview
from vlcp_ray.captioning.page import render
from vlcp_ray.schemas import reasons, reject, with_column
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import open_source
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.pair import Caption
from vlcp_ray.stages.pair.saved_captions import LoadSavedCaptions

HOW = Caption(engine="transformers", model="demo/llava", max_tokens=8, max_model_len=512)


@pytest.fixture
def images(tmp_path: Path) -> Ingest:
    """Three classes of four train images each, one of which is none, and val images."""
    open_source.cache_clear()
    names = [(name, number) for name in ("cat", "cow", "dog") for number in range(4)]
    files = {f"{split}/{name}/{number}.jpg": picture(number) for split in ("train", "val") for name, number in names}
    folder = write_files(tmp_path / "set", files | {"train/dog/3.jpg": b"no image"})
    return Ingest(source=str(folder), max_rejected=0.1)


def say_what(table: pa.Table) -> pa.Table:
    """A captioner that writes the class and the file, without a model."""
    rows = table.select(["class_name", "source"]).to_pylist()
    texts = [f'a {row["class_name"]}, "{row["source"]}"' for row in rows]
    table = with_column(reject(table, {}), "caption", pa.array(texts))
    is_bad = [bool(reason) for reason in reasons(table)]
    for name, value in (("tokens", 7), ("read_tokens", 30), ("is_cut", False)):
        table = with_column(table, name, pa.array([None if bad else value for bad in is_bad]))
    return table


def fails_after(calls: int) -> Callable[[pa.Table], pa.Table]:
    done: list[int] = []

    def caption(table: pa.Table) -> pa.Table:
        done.append(len(table))
        if len(done) > calls:
            raise RuntimeError("the machine has failed")
        return say_what(table)

    return caption


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_describe_writes_a_table_that_a_job_reads(images: Ingest, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"captions.{suffix}"
    found = describe(images, HOW, lambda _: say_what, target, lambda _: None)
    assert (found.written, dict(found.rejected), found.tokens) == (11, {"undecodable": 1}, 77)
    assert sorted(path.name for path in tmp_path.glob("captions*")) == [target.name]
    table = pa.table({"image_id": ["train/cat/0.jpg", "train/dog/2.jpg"], "reason": ["", ""], "detail": ["", ""]})
    ids = {row["image_id"] for row in _read(target)}
    assert len(ids) == 11
    table = table.set_column(0, "image_id", pa.array(sorted(ids)[:2]))
    captions = LoadSavedCaptions(str(target))(table)["caption"].to_pylist()
    assert all(text.startswith("a cat, ") for text in captions)


def _read(target: Path) -> list[dict[str, str]]:
    import pandas

    if target.suffix == ".parquet":
        return list(parquet.read_table(target).to_pylist())
    if target.suffix == ".csv":
        return list(pandas.read_csv(target).to_dict("records"))
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


def test_describe_continues_where_it_was_interrupted(
    images: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlcp_ray.captioning.describe._BATCH", 4)
    whole, target = tmp_path / "whole.jsonl", tmp_path / "captions.jsonl"
    describe(images, HOW, lambda _: say_what, whole, lambda _: None)
    with pytest.raises(RuntimeError):
        describe(images, HOW, lambda _: fails_after(1), target, lambda _: None)
    partial = tmp_path / "captions.jsonl.partial"
    with partial.open("a") as lines:
        lines.write('{"image_id": "half a li')
    with pytest.raises(ConfigError, match=r"captions\.jsonl\.partial was begun with other settings; remove it"):
        describe(images, HOW.model_copy(update={"seed": 1}), lambda _: say_what, target, lambda _: None)
    found = describe(images, HOW, lambda _: say_what, target, lambda _: None)
    assert found.written == 11
    assert found.tokens == 49
    assert sorted(target.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    assert not partial.exists()


def test_describe_with_too_many_unreadable_images_ends_and_continues(images: Ingest, tmp_path: Path) -> None:
    target = tmp_path / "captions.csv"
    strict = images.model_copy(update={"max_rejected": 0.01})
    message = r"^ingest: 1 of 12 images cannot be read, more than ingest\.max_rejected \(1\.0%\): .*dog/3\.jpg: "
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            describe(strict, HOW, lambda _: say_what, target, lambda _: None)
    assert not target.exists()
    found = describe(images, HOW, lambda _: say_what, target, lambda _: None)
    assert (found.written, found.tokens) == (11, 0)
    assert len(_read(target)) == 11


def test_caption_says_what_was_done(
    images: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bad(table: pa.Table) -> pa.Table:
        """One caption repeats itself, and one is cut."""
        table = say_what(table)
        texts, is_cut = table["caption"].to_pylist(), table["is_cut"].to_pylist()
        texts[0], is_cut[1] = "a cat " * 20, True
        return with_column(with_column(table, "caption", pa.array(texts)), "is_cut", pa.array(is_cut))

    monkeypatch.setattr("vlcp_ray.captioning.command._load", lambda how: bad)
    assert run(images, HOW, str(tmp_path / "captions.csv"), 0) == 0
    _, rejected, cut, problem, written = capsys.readouterr().out.splitlines()
    assert rejected.startswith("1 image without a caption (undecodable), the first: ")
    assert "dog/3.jpg: " in rejected
    assert cut == "1 caption was cut before its end; see caption.max_tokens"
    assert problem == "1 caption repeats itself"
    assert written.startswith("11 captions: ")


def test_preview_shows_images_of_different_classes(images: Ingest) -> None:
    rows = preview(images, say_what, 3)
    assert [row["class_name"] for row in rows] == ["cat", "cow", "dog"]
    assert len(preview(images, say_what, 2)) == 2
    page = render(images.source, HOW, rows)
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert "&#34;" in page  # a quotation mark of a caption
    assert "7 tokens" in page


def test_caption_of_the_demo_s_model_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Ingest(source="digits"), HOW, "", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[4] == "with the images: --to page.html"
    assert lines[0].endswith(", 8 tokens, cut)")
    assert lines[1].startswith("  The ")


@pytest.mark.parametrize(
    ("changes", "to", "count", "message"),
    [
        ({}, "", 0, r"name the table: --to captions\.parquet; or look at some captions first: --preview 8"),
        ({}, "x.txt", 0, r"--to x\.txt: the table is \.parquet or \.jsonl or \.csv"),
        ({}, "x.parquet", 8, r"--to x\.parquet: a preview is \.html"),
        ({"source": "t.csv"}, "x.csv", 0, r"caption\.source: the table is what this command writes"),
        ({"model": "demo/stable_diffusion"}, "", 2, r"caption\.model: .* is no vision-language model"),
        ({}, "nowhere/x.csv", 0, r"--to nowhere/x\.csv: there is no folder 'nowhere'; make it"),
    ],
)
def test_caption_refuses_before_anything_is_loaded(
    changes: dict[str, str], to: str, count: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        run(Ingest(source="digits"), HOW.model_copy(update=changes), to, count)
