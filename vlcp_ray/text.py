"""Knows which words tell the images of a class apart, and which description of a cluster says most of them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Matching = Literal["word", "substring"]
Integers = npt.NDArray[np.integer[Any]]

#: A run of letters beside no digit or underscore; "long-haired" is two words. Both halves of "isn't" are left out: they
#: say nothing and scikit-learn's stop words lack them.
WORD: Final = r"(?<!\w['\u2019])\b[^\W\d_]+\b(?!['\u2019]\w)"


@dataclass(frozen=True)
class Words:
    """The candidate words of a class's descriptions, in the order in which they stand there.

    Token i is the word `vocabulary[word[i]]` in the description `texts[row[i]]`. What cannot be representative (stop
    words, words that are too common, parts of the class name) is not among the tokens.
    """

    texts: Sequence[str]
    vocabulary: Sequence[str]
    word: Integers  # (tokens,) indices into vocabulary
    row: Integers  # (tokens,) indices into texts, ascending
    matching: Matching


@dataclass(frozen=True)
class Choice:
    """The text prototype of a cluster: the row of its description in the class, and the representative words."""

    row: int
    words: tuple[str, ...]


def clean(answer: str) -> str:
    """A captioner's answer without double quotes and `'s`, all white space single (METHOD 2.1, as released)."""
    return " ".join(answer.replace('"', "").replace("'s", "").split())


def count_words(texts: Sequence[str], class_name: str, max_df: float, matching: Matching) -> Words:
    """Find the candidate words in the inlier descriptions of one class (METHOD 2.5, steps 1 and 2).

    Args:
        texts: the descriptions C; their order decides ties.
        class_name: N. "word" drops its words, whatever their case. "substring" drops each word that occurs in it as it
            is written, as the released code does: "an" because of "fan", but not "siberian" because of "Siberian".
        max_df: beta. A word in max_df x len(texts) descriptions or more is dropped; scikit-learn's
            `CountVectorizer(max_df=...)` would keep it at exactly that number.
        matching: how "part of the class name" and, in `choose_text`, "contains" are meant.

    Tokens and stop words are scikit-learn's for both; the released code has nltk's, which must be downloaded.
    """
    vocabulary, word, row = _tokens(texts)
    names = _split(class_name) if matching == "word" else class_name
    keep = np.array([candidate not in names for candidate in vocabulary], dtype=bool)
    keep &= _document_frequency(word, row, len(vocabulary)) < math.ceil(Fraction(str(max_df)) * len(texts))
    kept = keep[word]
    return Words(texts, vocabulary, word[kept], row[kept], matching)


def common_words(texts: Sequence[str], max_df: float) -> list[tuple[str, float]]:
    """The words that are too common in a class to tell its images apart (METHOD 2.5, step 2), commonest first.

    Args:
        texts: the descriptions C of the class's inliers.
        max_df: beta.

    Returns each with the share of the descriptions that hold it; stop words are left out before and not among them.
    """
    vocabulary, word, row = _tokens(texts)
    count, least = _document_frequency(word, row, len(vocabulary)), math.ceil(Fraction(str(max_df)) * len(texts))
    order = np.argsort(-count, kind="stable")
    return [(vocabulary[i], float(count[i] / len(texts))) for i in order if count[i] >= least]


def representative_words(words: Words, members: Integers, n_words: int) -> tuple[Integers, Integers]:
    """The most frequent candidate words of one cluster (METHOD 2.5, steps 3 and 4).

    Args:
        words: of the whole class.
        members: (m,) the cluster's rows in `words.texts`, ascending.
        n_words: k, how many to keep at most.

    Returns:
        Indices into `words.vocabulary` and occurrences F_j, both (<= n_words,), most frequent first, ties first seen.
    """
    found, first, count = np.unique(words.word[np.isin(words.row, members)], return_index=True, return_counts=True)
    order = np.lexsort((first, -count))[:n_words]
    return found[order], count[order]


def choose_text(words: Words, members: Integers, distances: npt.NDArray[np.floating[Any]], n_words: int) -> Choice:
    """Choose the description of a cluster that says most of its representative words (METHOD 2.5, step 5).

    Where no description scores, as the released code goes on with an empty text, the one whose image is nearest to the
    centroid is chosen.

    Args:
        words: of the whole class.
        members: (m,) the cluster's rows in `words.texts`, ascending; ties go to the first.
        distances: (m,) of the members to their centroid.
        n_words: k.

    Raises:
        ValueError: every description of the cluster is empty.
    """
    top, count = representative_words(words, members, n_words)
    contains = _contains_word(words, members, top) if words.matching == "word" else _contains(words, members, top)
    scores = contains @ count  # (m, k) @ (k,)
    best = int(scores.argmax()) if scores.any() else _nearest(words, members, distances)
    return Choice(int(members[best]), tuple(words.vocabulary[i] for i in top))


def _tokens(texts: Sequence[str]) -> tuple[tuple[str, ...], Integers, Integers]:
    """All words but stop words, in order: the vocabulary, first seen first, then word and text of each token."""
    # Both take seconds to import, and captioners need only `clean`.
    import pandas as pd
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    tokens = [_split(text) for text in texts]
    row = np.repeat(np.arange(len(texts)), [len(words) for words in tokens])
    word, found = pd.factorize(np.array(list(chain.from_iterable(tokens)), dtype=object))
    says = np.array([candidate not in ENGLISH_STOP_WORDS for candidate in found], dtype=bool)
    place, kept = np.cumsum(says) - 1, says[word]
    return tuple(found[says]), place[word[kept]], row[kept]


def _split(text: str) -> list[str]:
    """The words of a text, as `WORD` finds them; where it has nothing but plain letters between, five times as fast."""
    text = text.lower()
    if not text.isascii() or any(mark in text for mark in _NOT_PLAIN):
        return re.findall(WORD, text)
    return text.translate(_TO_SPACES).split()


_NOT_PLAIN: Final = "0123456789_'"
_TO_SPACES: Final = {code: " " for code in range(128) if not chr(code).isalpha()}


def _document_frequency(word: Integers, row: Integers, n_vocabulary: int) -> Integers:
    _, first = np.unique(row * n_vocabulary + word, return_index=True)  # a word of a description, once
    return np.bincount(word[first], minlength=n_vocabulary)


def _contains_word(words: Words, members: Integers, top: Integers) -> npt.NDArray[np.bool_]:
    rank = np.full(len(words.vocabulary), -1)
    rank[top] = np.arange(len(top))
    scored = np.isin(words.row, members) & (rank[words.word] >= 0)
    contains = np.zeros((len(members), len(top)), dtype=bool)
    contains[np.searchsorted(members, words.row[scored]), rank[words.word[scored]]] = True
    return contains


def _contains(words: Words, members: Integers, top: Integers) -> npt.NDArray[np.bool_]:
    variable = np.dtypes.StringDType()  # fixed-width strings would all take the room of the longest
    texts = np.array([words.texts[i] for i in members], dtype=variable)
    fragments = np.array([words.vocabulary[i] for i in top], dtype=variable)
    contains: npt.NDArray[np.bool_] = np.strings.find(texts[:, None], fragments) >= 0
    return contains


def _nearest(words: Words, members: Integers, distances: npt.NDArray[np.floating[Any]]) -> int:
    for i in np.argsort(distances, kind="stable"):
        if words.texts[members[i]].strip():
            return int(i)
    raise ValueError(f"the descriptions of {len(members)} images are all empty: caption them anew, or leave them out")
