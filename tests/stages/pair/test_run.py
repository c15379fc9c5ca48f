"""Tests of the facts that pair counts in its table."""

from vlcp_ray.stages.pair import format_too_long


def test_format_too_long_is_a_sentence_with_exact_numbers() -> None:
    assert format_too_long(1200, 9469, 77) == (
        "1,200 of 9,469 captions are longer than the 77 tokens that the text encoder reads at once: fine-tuning reads "
        "the first 77, generation all of a text prototype"
    )
    assert format_too_long(1, 2, 77).startswith("1 of 2 captions is longer")
