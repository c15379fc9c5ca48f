"""Tests of captioning: good, broken and rejected rows, prompts and seeds, and cleaned answers."""

import io
import random
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlcp_ray.demo import digits
from vlcp_ray.models.captioners import Answer
from vlcp_ray.schemas import IMAGES, conform, reject
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.pair import Caption
from vlcp_ray.stages.pair.caption import CaptionRows, clean

SETTINGS = Caption(engine="transformers", model="demo/llava", temperature=0.2, max_tokens=24, max_model_len=512, seed=3)


@pytest.fixture(scope="module")
def caption_rows() -> CaptionRows:
    return CaptionRows(SETTINGS)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """The first twelve digits."""
    return conform(pa.Table.from_pylist(list(digits.rows("val"))[:12]), IMAGES)


@pytest.fixture(scope="module")
def captioned(caption_rows: CaptionRows, table: pa.Table) -> pa.Table:
    return caption_rows(table)


class Recorder:
    """A captioner that returns given answers and stores what it was called with."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = [Answer(text, 3, 20, False) for text in answers]

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[Answer]:
        self.images, self.prompts, self.seeds = images, prompts, seeds
        return self.answers


def recording(answers: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> tuple[CaptionRows, Recorder]:
    """Make a `CaptionRows` with a captioner that records its calls."""
    recorder = Recorder(answers)
    monkeypatch.setattr("vlcp_ray.stages.pair.caption.load_captioner", lambda settings, gpus: recorder)
    return CaptionRows(SETTINGS), recorder


def replace_values(table: pa.Table, name: str, values: Mapping[int, object]) -> pa.Table:
    column = table[name].to_pylist()
    for row, value in values.items():
        column[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(column, table[name].type))


def broken_images() -> dict[int, object]:
    """Bytes of images by row: none, no image, and more pixels than Pillow decodes."""
    huge = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(huge, "PNG")
    return {1: b"", 4: b"no image", 7: huge.getvalue()}


def test_caption_rows_captions_every_image(captioned: pa.Table, table: pa.Table) -> None:
    assert captioned.select(table.column_names).equals(table)
    assert captioned["reason"].to_pylist() == [""] * len(table)
    for name, text in zip(table["class_name"].to_pylist(), captioned["caption"].to_pylist(), strict=True):
        assert name in text
        assert '"' not in text


def test_caption_rows_in_other_order_and_batches_gives_same_captions(
    caption_rows: CaptionRows, captioned: pa.Table, table: pa.Table
) -> None:
    order = random.Random(0).sample(range(len(table)), len(table))
    whole = captioned["caption"]
    assert caption_rows(table.take(order))["caption"].to_pylist() == whole.take(order).to_pylist()
    parts = [caption_rows(table.slice(start, 5)) for start in range(0, len(table), 5)]
    assert pa.concat_tables(parts)["caption"].to_pylist() == whole.to_pylist()


def test_caption_rows_broken_images_are_rejected(
    caption_rows: CaptionRows, captioned: pa.Table, table: pa.Table
) -> None:
    result = caption_rows(replace_values(table, "image", broken_images()))
    whole = captioned["caption"].to_pylist()
    expected = {1: "undecodable", 4: "undecodable", 7: "too_large"}
    assert result["image_id"].equals(table["image_id"])
    assert result["reason"].to_pylist() == [expected.get(row, "") for row in range(len(table))]
    assert all(bool(text) == (row in expected) for row, text in enumerate(result["detail"].to_pylist()))
    assert result["caption"].to_pylist() == ["" if row in expected else whole[row] for row in range(len(table))]


def test_caption_rows_skips_rejected_rows(table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = reject(
        replace_values(table, "image", broken_images()), {4: ("missing_caption", "before"), 5: ("too_large", "x")}
    )
    caption_rows, recorder = recording(["x"] * 8, monkeypatch)
    captioned = caption_rows(marked)
    assert len(recorder.prompts) == 8
    assert captioned["reason"].to_pylist()[4:6] == ["missing_caption", "too_large"]
    assert captioned["caption"].to_pylist()[4:6] == ["", ""]


def test_caption_rows_without_a_good_row_runs_no_model(
    caption_rows: CaptionRows, captioned: pa.Table, table: pa.Table
) -> None:
    bad = replace_values(table.slice(0, 2), "image", {0: b"", 1: b""})
    assert caption_rows(bad)["reason"].to_pylist() == ["undecodable"] * 2
    empty = caption_rows(table.slice(0, 0))
    assert len(empty) == 0
    assert empty.schema.equals(captioned.schema)


def test_caption_rows_prompt_and_seed_are_of_the_row(table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {0: 'the {class_name} "x"', 1: "{0} {", 2: "tench, Tinca tinca"}
    caption_rows, recorder = recording("abc", monkeypatch)
    caption_rows(replace_values(table.slice(0, 3), "class_name", names))
    head, tail = SETTINGS.prompt.split("{class_name}")
    assert recorder.prompts == [head + str(name) + tail for name in names.values()]
    assert recorder.seeds == [seed_for(3, "caption", image_id) for image_id in table["image_id"].to_pylist()[:3]]
    assert [image.size for image in recorder.images] == [(32, 32)] * 3


def test_caption_rows_cleans_answers_and_rejects_empty_ones(table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    caption_rows, _ = recording(['A "red"\n fan\'s  tail', ' "" \n', ""], monkeypatch)
    captioned = caption_rows(table.slice(0, 3))
    assert captioned["caption"].to_pylist() == ["A red fan tail", "", ""]
    assert captioned["reason"].to_pylist() == ["", "empty_caption", "empty_caption"]


def test_caption_rows_rejects_images_with_too_many_tokens(table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    caption_rows, recorder = recording(["a fan", "", "x"], monkeypatch)
    recorder.answers[1:] = [Answer("", 0, 0, False, "too long"), Answer("", 24, 20, True)]
    captioned = caption_rows(table.slice(0, 3))
    assert captioned["reason"].to_pylist() == ["", "too_many_tokens", "empty_caption"]
    assert captioned["detail"].to_pylist()[1] == "too long"
    assert captioned["detail"].to_pylist()[2].endswith("it was cut before its end; raise caption.max_tokens")
    assert captioned["tokens"].to_pylist() == [3, None, 24]


def test_image_that_does_not_fit_is_rejected_and_the_others_have_their_captions(
    caption_rows: CaptionRows, captioned: pa.Table, table: pa.Table
) -> None:
    """The class name of one image is longer than the model reads."""
    long = caption_rows(replace_values(table, "class_name", {3: "digit " * 600}))
    assert long["reason"].to_pylist() == ["too_many_tokens" if row == 3 else "" for row in range(len(table))]
    others = [row for row in range(len(table)) if row != 3]
    assert long["caption"].take(others).to_pylist() == captioned["caption"].take(others).to_pylist()


def test_clean_strips_double_quotes_possessives_and_extra_spaces() -> None:
    assert clean(' The "dog\'s"\n coat\t is  brown. ') == "The dog coat is brown."
    assert clean('"\'s" \n') == ""


@settings(deadline=None)
@given(st.text())
def test_clean_of_any_text_has_single_spaces_and_no_double_quote(answer: str) -> None:
    cleaned = clean(answer)
    assert '"' not in cleaned
    assert cleaned == " ".join(cleaned.split())


def test_caption_rows_describes_only_images_without_a_caption(monkeypatch: pytest.MonkeyPatch, table: pa.Table) -> None:
    caption_rows, recorder = recording(["new 1", "new 2"], monkeypatch)
    given = [f"given {row}" for row in range(len(table))]
    given[2] = given[7] = ""
    captioned = caption_rows(table.append_column("caption", pa.array(given)))
    assert len(recorder.images) == 2
    names = table["class_name"].to_pylist()
    assert recorder.prompts == [SETTINGS.prompt.replace("{class_name}", names[row]) for row in (2, 7)]
    given[2], given[7] = "new 1", "new 2"
    assert captioned["caption"].to_pylist() == given
