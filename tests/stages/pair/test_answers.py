"""Tests of what is counted in a captioner's answers."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlcp_ray.stages.pair import ANSWERS, PROMPT, format_problems, format_tokens
from vlcp_ray.stages.pair.answers import (
    count_captions,
    count_tokens,
    is_in_other_script,
    problems_of,
    refuses,
    repeats,
)
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.io import open_uri


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(*open_uri(str(tmp_path / "pairs"), "--root"))


@pytest.mark.parametrize(
    ("caption", "is_so"),
    [
        ("I'm sorry, but I cannot identify what is in the image.", True),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m unable to view images.", True),
        ("As an AI, I have no eyes.", True),
        ("A sorry dog that I can see.", False),
        (f"A dog {'with brown fur ' * 8} of which I cannot see the tail.", False),
    ],
)
def test_refuses_finds_the_usual_phrases_at_the_beginning(caption: str, is_so: bool) -> None:
    assert refuses(caption) == is_so


def test_repeats_finds_loops_and_no_ordinary_caption() -> None:
    assert repeats("The dog is brown. " * 8)
    assert repeats("a dog " + "very " * 30)
    assert not repeats("The dog is brown. " * 2)
    assert not repeats(
        "The digit three in the image is drawn with a slender, pale grey stroke and leans to the left. Its shape is of "
        "average width and evenly balanced, it sits in the centre, and it has no enclosed hole."
    )


def test_is_in_other_script_compares_letters_with_those_of_the_prompt() -> None:
    assert is_in_other_script("图中有一只棕色的狗", PROMPT)
    assert is_in_other_script("Бурая собака", PROMPT)
    assert not is_in_other_script("图中有一只棕色的狗", "描述图中的{class_name}")
    assert not is_in_other_script("A Shiba Inu (柴犬) with a curled tail, a brown coat and pointed ears.", PROMPT)
    assert not is_in_other_script("Un chien brun, très façonné", PROMPT)
    assert not is_in_other_script("", PROMPT)


@settings(deadline=None)
@given(st.text())
def test_problems_of_any_text_are_known(caption: str) -> None:
    assert set(problems_of(caption, PROMPT)) <= {"refuses", "repeats", "other_language"}


def test_count_tokens_adds_up_all_files(artifact: Artifact) -> None:
    assert format_tokens(count_tokens(artifact)) == ""
    for number, (tokens, is_cut) in enumerate((([10, 20], False), ([64], True))):
        columns = {"image_id": [f"{number}-{row}" for row in range(len(tokens))], "tokens": tokens}
        columns |= {"read_tokens": [100] * len(tokens), "is_cut": [is_cut] * len(tokens)}
        artifact.write_table(f"answers/{number}.parquet", pa.table(columns, ANSWERS))
    count = count_tokens(artifact)
    assert count == {"answers": 3, "longest": 64, "tokens": 94, "read_tokens": 300, "cut": 1}
    assert format_tokens({**count, "tokens_per_second": 1234.4}) == (
        "3 answers of 31 tokens on average and 64 at most, 1,234 tokens/s with the engine's start; image and prompt "
        "are 100 tokens, 76% of all; 1 was cut before its end"
    )


def test_count_captions_counts_the_captions_of_all_files(tiny_stable_diffusion: str, artifact: Artifact) -> None:
    none = {"train": [0, 0], "caption_lengths": {"captions": 0, "too_long": 0, "encoder_tokens": 77}}
    found = count_captions(artifact, tiny_stable_diffusion, 2, PROMPT)
    assert {name: found[name] for name in none} == none
    lengths = [[75, 76], [1, 2, 300], *[[5]] * 300]  # letters, each a token
    for number, part in enumerate(lengths):
        labels = pa.array([min(number, 2)] * len(part), pa.int32())
        ids = [f"{number}-{row}" for row in range(len(part))]
        table = pa.table({"image_id": ids, "label": labels, "caption": ["x" * n for n in part]})
        artifact.write_table(f"pairs/{number}.parquet", table)
    counts = {"captions": 305, "too_long": 2, "encoder_tokens": 77}
    found = count_captions(artifact, tiny_stable_diffusion, 4, PROMPT)
    assert (found["train"], found["caption_lengths"]) == ([2, 3, 300, 0], counts)
    assert not any(one["captions"] for one in found["caption_problems"].values())


def test_count_captions_has_the_first_examples_of_each_problem(tiny_stable_diffusion: str, artifact: Artifact) -> None:
    captions = {f"{row:02}": "A brown dog." for row in range(40)}
    captions |= {f"{row:02}": "I'm sorry, no." for row in (31, 7, 5, 20)} | {"11": "一只狗" * 200}
    for number in range(2):
        ids = sorted(captions)[number::2]
        rows = {"image_id": ids, "caption": [captions[image_id] for image_id in ids], "label": [0] * len(ids)}
        table = pa.table(rows)
        artifact.write_table(f"pairs/{number}.parquet", table)
    saved = count_captions(artifact, tiny_stable_diffusion, 1, "")["caption_problems"]  # of a table: without a prompt
    assert {name: one["captions"] for name, one in saved.items()} == {"refuses": 4, "repeats": 0, "other_language": 0}
    found = count_captions(artifact, tiny_stable_diffusion, 1, PROMPT)["caption_problems"]
    assert {name: one["captions"] for name, one in found.items()} == {"refuses": 4, "repeats": 0, "other_language": 1}
    assert [row["image_id"] for row in found["refuses"]["examples"]] == ["05", "07", "20"]
    assert len(found["other_language"]["examples"][0]["caption"]) == 200
    lines = [text for text, _ in format_problems(found, 40)]
    assert lines == [
        "4 of 40 captions refuse to describe the image",
        "1 of 40 captions is not in the script of the prompt",
    ]
