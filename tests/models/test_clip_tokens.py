"""Tests of the tokenizer of the text encoder: which captions have more tokens than it reads at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vlcp_ray.models.clip_tokens import count_too_long, load_tokenizer
from vlcp_ray.models.stable_diffusion import tokenize_captions

DEMO = load_tokenizer("demo/stable_diffusion")


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
