"""The words of captions: split captions into words, and find the words that are common in a class."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]

#: A run of letters with no digit or underscore beside it; "long-haired" is two words. Both parts of "isn't" are left
#: out: they carry no meaning, and scikit-learn's stop words do not contain them.
WORD: Final = r"(?<!\w['\u2019])\b[^\W\d_]+\b(?!['\u2019]\w)"

_NOT_PLAIN: Final = "0123456789_'"
_TO_SPACES: Final = {code: " " for code in range(128) if not chr(code).isalpha()}


def common_words(captions: Sequence[str], max_df: float) -> list[tuple[str, float]]:
    """Find the words that are too common in a class to tell its images apart.

    Args:
        captions: C, of the class's inliers.
        max_df: beta.

    Returns:
        Each word with the share of the captions that contain it, the most common first. Stop words are left out.
    """
    vocabulary, word, row = tokenize(captions)
    count, least = document_frequency(word, row, len(vocabulary)), math.ceil(Fraction(str(max_df)) * len(captions))
    order = np.argsort(-count, kind="stable")
    return [(vocabulary[i], float(count[i] / len(captions))) for i in order if count[i] >= least]


def tokenize(captions: Sequence[str]) -> tuple[tuple[str, ...], Integers, Integers]:
    """Split captions into words without stop words.

    Returns:
        vocabulary: the different words, first seen first.
        word: (tokens,) indices into the vocabulary, in the order of the captions.
        row: (tokens,) indices into captions, ascending.
    """
    # Both take seconds to import.
    import pandas as pd
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = [split_words(caption) for caption in captions]
    row = np.repeat(np.arange(len(captions)), [len(part) for part in words])
    word, vocabulary = pd.factorize(np.array(list(chain.from_iterable(words)), dtype=object))
    is_kept = np.array([candidate not in ENGLISH_STOP_WORDS for candidate in vocabulary], dtype=bool)
    new_index, kept_tokens = np.cumsum(is_kept) - 1, is_kept[word]
    return tuple(vocabulary[is_kept]), new_index[word[kept_tokens]], row[kept_tokens]


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words as defined by `WORD`; plain ASCII letters are split five times as fast."""
    text = text.lower()
    if not text.isascii() or any(mark in text for mark in _NOT_PLAIN):
        return re.findall(WORD, text)
    return text.translate(_TO_SPACES).split()


def document_frequency(word: Integers, row: Integers, n_vocabulary: int) -> Integers:
    """Count the captions that contain each word of the vocabulary: (n_vocabulary,), from `tokenize`'s word and row."""
    _, first = np.unique(row * n_vocabulary + word, return_index=True)  # a word counts once per caption
    return np.bincount(word[first], minlength=n_vocabulary)
