"""Tests of the tokenizer of the text encoder: which captions have more tokens than it reads at once."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlcp_ray.models.clip_tokens import count_too_long, load_tokenizer
from vlcp_ray.models.stable_diffusion import tokenize_captions

DEMO = load_tokenizer("demo/stable_diffusion")
LONGEST = max(DEMO.get_vocab(), key=len)
LIMIT = 77 * (2 * len(LONGEST) + 1)  # characters that are read of a caption


def test_count_too_long_counts_texts_that_fine_tuning_cuts(tiny_stable_diffusion: str) -> None:
    tokenizer = load_tokenizer(tiny_stable_diffusion)  # every letter is a token
    texts = ["a" * count for count in (0, 1, 74, 75, 76, 77, 5000)]
    tokenize_captions(tokenizer, texts)  # it sets truncation and padding
    assert [count_too_long(tokenizer, [text]) for text in texts] == [0, 0, 0, 0, 1, 1, 1]
    assert count_too_long(tokenizer, texts) == 3
    assert count_too_long(tokenizer, texts * 2000) == 6000  # more than one batch
    assert count_too_long(tokenizer, []) == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=120), max_size=4))
def test_count_too_long_of_any_texts_equals_the_tokenizer_without_truncation(texts: list[str]) -> None:
    rows = DEMO(texts, truncation=False, verbose=False)["input_ids"] if texts else []
    assert count_too_long(DEMO, texts) == sum(len(ids) > 77 for ids in rows)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["handwritten", "a", ".", "\u0175\u0301", "\x1c", "u\u0308\u0304", LONGEST]),
            st.sampled_from(["", " ", "\n\t\u3000", " " * LIMIT, "\x1c" * 9]),
        ),
        min_size=60,
        max_size=90,
    )
)
def test_count_too_long_of_texts_above_the_limit_equals_the_tokenizer(parts: list[tuple[str, str]]) -> None:
    texts = ["".join(word + space for word, space in parts), "\n" * LIMIT + " ".join(word for word, _ in parts)]
    rows = DEMO(texts, truncation=False, verbose=False)["input_ids"]
    assert [count_too_long(DEMO, [text]) for text in texts] == [len(ids) > 77 for ids in rows]


@pytest.mark.parametrize(("words", "is_too_long"), [(75, 0), (76, 1)])
def test_count_too_long_counts_runs_of_white_space_as_one(words: int, is_too_long: int) -> None:
    assert count_too_long(DEMO, [("handwritten" + " \u2003\n" * LIMIT) * words]) == is_too_long


def test_count_too_long_counts_control_characters() -> None:
    assert count_too_long(DEMO, ["\x1c" * (LIMIT + 1)]) == 1  # white space for Python, and tokens for CLIP


def test_count_too_long_reads_no_text_beyond_the_limit() -> None:
    read = list[int]()

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            return getattr(DEMO.backend_tokenizer, name)

        def encode_batch_fast(self, texts: list[str]) -> Any:
            read.extend(map(len, texts))
            return DEMO.backend_tokenizer.encode_batch_fast(texts)

    tokenizer: Any = SimpleNamespace(backend_tokenizer=Recorder(), model_max_length=77)
    texts = ["brown dog " * 100_000, "a" * 1_000_000, "u\u0308\u0304" * LIMIT, "a cat"]
    assert count_too_long(tokenizer, texts) == 3
    assert read == [LIMIT, LIMIT, LIMIT, 5]
