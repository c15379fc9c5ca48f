"""The words of captions: split captions into words, and find the words that are common in a class.

There are two ways to split, by the name of `prototype.matching`: "word", the default, and "substring", that of the
released code of VLCP. Both leave out the English stop words of nltk's data, as the released code does. scikit-learn's
stop words hold words of appearance too (thin, thick, top, bottom, front, back, side, full, empty).
"""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]
Matching: TypeAlias = Literal["word", "substring"]

#: A run of letters with no digit or underscore beside it; "long-haired" is two words. Both parts of "isn't" and of
#: "dog's" are left out.
WORD: Final = r"(?<!\w['\u2019])\b[^\W\d_]+\b(?!['\u2019]\w)"

_NOT_PLAIN: Final = "0123456789_'"
_TO_SPACES: Final = {code: " " for code in range(128) if not chr(code).isalpha()}


@lru_cache(maxsize=1)
def stop_words() -> frozenset[str]:
    """Read the English stop words of nltk's data: the 179 of 2023.

    Those that were added in 2024, such as "he'd", have an apostrophe, so that neither way to split gives them.
    """
    return frozenset(Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split())


def common_words(captions: Sequence[str], max_df: float, matching: Matching) -> list[tuple[str, float]]:
    """Find the words that are too common in a class to tell its images apart.

    Args:
        captions: C, of the class's inliers.
        max_df: beta.
        matching: how captions are split.

    Returns:
        Each word with the share of the captions that contain it, the most common first. Stop words are left out.
    """
    vocabulary, word, row = tokenize(captions, matching)
    count, least = document_frequency(word, row, len(vocabulary)), math.ceil(Fraction(str(max_df)) * len(captions))
    order = np.argsort(-count, kind="stable")
    return [(vocabulary[i], float(count[i] / len(captions))) for i in order if count[i] >= least]


def tokenize(captions: Sequence[str], matching: Matching) -> tuple[tuple[str, ...], Integers, Integers]:
    """Split captions into words without stop words.

    Args:
        captions: any texts.
        matching: "word": as `split_words`; "substring": as `split_like_nltk`.

    Returns:
        vocabulary: the different words, first seen first.
        word: (tokens,) indices into the vocabulary, in the order of the captions.
        row: (tokens,) indices into captions, ascending.
    """
    import pandas as pd  # takes a second to import

    split = split_words if matching == "word" else split_like_nltk
    words = [split(caption) for caption in captions]
    row = np.repeat(np.arange(len(captions)), [len(part) for part in words])
    word, vocabulary = pd.factorize(np.array(list(chain.from_iterable(words)), dtype=object))
    is_kept = np.array([candidate not in stop_words() for candidate in vocabulary], dtype=bool)
    new_index, kept_tokens = np.cumsum(is_kept) - 1, is_kept[word]
    return tuple(vocabulary[is_kept]), new_index[word[kept_tokens]], row[kept_tokens]


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words as defined by `WORD`; plain ASCII letters are split five times as fast."""
    text = text.lower()
    if not text.isascii() or any(mark in text for mark in _NOT_PLAIN):
        return re.findall(WORD, text)
    return text.translate(_TO_SPACES).split()


def split_like_nltk(text: str) -> list[str]:
    """Split a text into the lower-case tokens of nltk's `word_tokenize` that consist of letters.

    "top-heavy" is one token with a hyphen, and so no word; "isn't" gives "is". `word_tokenize` first splits sentences
    by a model of English that it downloads; the same algorithm without its model, which is used here, ends a sentence
    at every full stop before a space, also after an abbreviation such as "approx.". Takes 3 ms for 600 characters.
    """
    split_sentences, split_tokens = _nltk_tokenizers()
    tokens = chain.from_iterable(split_tokens(sentence) for sentence in split_sentences(text))
    return [token.lower() for token in tokens if token.isalpha()]


@lru_cache(maxsize=1)
def _nltk_tokenizers() -> tuple[Callable[[str], list[str]], Callable[[str], list[str]]]:
    from nltk.tokenize.destructive import NLTKWordTokenizer  # takes a second to import
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    return PunktSentenceTokenizer().tokenize, NLTKWordTokenizer().tokenize


def document_frequency(word: Integers, row: Integers, n_vocabulary: int) -> Integers:
    """Count the captions that contain each word of the vocabulary: (n_vocabulary,), from `tokenize`'s word and row."""
    _, first = np.unique(row * n_vocabulary + word, return_index=True)  # a word counts once per caption
    return np.bincount(word[first], minlength=n_vocabulary)
