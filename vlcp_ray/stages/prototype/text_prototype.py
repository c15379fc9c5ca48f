"""Choose text prototypes: of each cluster the caption with most of its representative words.

All words of a caption count, also those behind the 77 tokens that fine-tuning reads: generation reads a text prototype
to its end, in slices. LLaVA's captions are assumed to have 120 tokens (`cost/rates.py`), so that without their ends the
texts would not be those of the released code. But a caption that is far longer than the others has nearly all words,
and many of them often: one of 5,000 words is the text of each cluster that contains it. Such captions are left out
(`_find_very_long`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from vlcp_ray.models.words import Matching, document_frequency, split_words, tokenize
from vlcp_ray.stages.prototype import RECIPE

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class CandidateWords:
    """The words of a class's captions that may be representative, in the order in which they occur.

    Token i is the word `vocabulary[word[i]]` in the caption `captions[row[i]]`. Stop words, words that are too common
    and parts of the class name are not among the tokens.
    """

    captions: Sequence[str]
    vocabulary: Sequence[str]
    word: Integers  # (tokens,) indices into vocabulary
    row: Integers  # (tokens,) indices into captions, ascending
    matching: Matching
    is_very_long: npt.NDArray[np.bool_]  # (captions,), see `_find_very_long`


@dataclass(frozen=True)
class TextPrototype:
    """The text prototype of a cluster: the row of its caption in the class, and the representative words."""

    row: int
    words: tuple[str, ...]


def find_candidate_words(captions: Sequence[str], class_name: str, max_df: float, matching: Matching) -> CandidateWords:
    """Find the candidate words in the captions of one class's inliers.

    Args:
        captions: C; their order decides ties.
        class_name: N. "word" drops its words, whatever their case. "substring" drops each word that is a substring of
            N as written, as the released code does: "an" because of "fan", but not "siberian" because of "Siberian".
        max_df: beta. A word in max_df x len(captions) captions or more is dropped; scikit-learn's
            `CountVectorizer(max_df=...)` would keep it at exactly that number.
        matching: how captions are split into words, and whether "part of the class name" and, in
            `choose_text_prototype`, "contains" compare whole words or substrings.
    """
    vocabulary, word, row = tokenize(captions, matching)
    names = split_words(class_name) if matching == "word" else class_name
    is_kept = np.array([candidate not in names for candidate in vocabulary], dtype=bool)
    is_kept &= document_frequency(word, row, len(vocabulary)) < math.ceil(Fraction(str(max_df)) * len(captions))
    kept_tokens = is_kept[word]
    return CandidateWords(
        captions, vocabulary, word[kept_tokens], row[kept_tokens], matching, _find_very_long(captions)
    )


def _find_very_long(captions: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Find the captions that are far longer than those of their class: (n,)."""
    length = np.array([len(caption) for caption in captions], dtype=np.int64)
    usual = np.median(length) if len(length) else 0
    is_very_long: npt.NDArray[np.bool_] = length > max(RECIPE.long, RECIPE.times_median * usual)
    return is_very_long


def representative_words(words: CandidateWords, members: Integers, n_words: int) -> tuple[Integers, Integers]:
    """Find the most frequent candidate words of one cluster.

    Args:
        words: of the whole class.
        members: (m,) the cluster's rows in `words.captions`, ascending.
        n_words: k, the maximum number of words.

    Returns:
        Indices into `words.vocabulary` and occurrences F_j, both (<= n_words,), most frequent first, ties first seen.
    """
    in_cluster = np.isin(words.row, members)
    word, first, count = np.unique(words.word[in_cluster], return_index=True, return_counts=True)
    order = np.lexsort((first, -count))[:n_words]
    return word[order], count[order]


def choose_text_prototype(
    words: CandidateWords, members: Integers, distances: npt.NDArray[np.floating[Any]], n_words: int
) -> TextPrototype:
    """Choose the caption of a cluster that contains most of its representative words.

    Where every score is 0 (the released code continues with an empty text), choose the caption of the image nearest to
    the centroid. Very long captions are neither counted nor chosen, unless the cluster has no others.

    Args:
        words: of the whole class.
        members: (m,) the cluster's rows in `words.captions`, ascending; ties go to the first.
        distances: (m,) from the members to their centroid.
        n_words: k.

    Raises:
        ValueError: every caption of the cluster is empty.
    """
    is_usual = ~words.is_very_long[members]
    if any(words.captions[i].strip() for i in members[is_usual]):
        members, distances = members[is_usual], distances[is_usual]
    top, count = representative_words(words, members, n_words)
    contains = _contains_word if words.matching == "word" else _contains_substring
    scores = contains(words, members, top) @ count  # (m, k) @ (k,)
    best = int(scores.argmax()) if scores.any() else _nearest_with_caption(words, members, distances)
    return TextPrototype(int(members[best]), tuple(words.vocabulary[i] for i in top))


def _contains_word(words: CandidateWords, members: Integers, top: Integers) -> npt.NDArray[np.bool_]:
    """Find out whether each member's caption contains each top word as a whole word: (m, k)."""
    rank = np.full(len(words.vocabulary), -1)
    rank[top] = np.arange(len(top))
    scored = np.isin(words.row, members) & (rank[words.word] >= 0)
    contains = np.zeros((len(members), len(top)), dtype=bool)
    contains[np.searchsorted(members, words.row[scored]), rank[words.word[scored]]] = True
    return contains


def _contains_substring(words: CandidateWords, members: Integers, top: Integers) -> npt.NDArray[np.bool_]:
    """Find out whether each member's caption contains each top word as a substring: (m, k)."""
    variable = np.dtypes.StringDType()  # fixed-width strings would all take the memory of the longest
    captions = np.array([words.captions[i] for i in members], dtype=variable)
    fragments = np.array([words.vocabulary[i] for i in top], dtype=variable)
    contains: npt.NDArray[np.bool_] = np.strings.find(captions[:, None], fragments) >= 0
    return contains


def _nearest_with_caption(words: CandidateWords, members: Integers, distances: npt.NDArray[np.floating[Any]]) -> int:
    for i in np.argsort(distances, kind="stable"):
        if words.captions[members[i]].strip():
            return int(i)
    raise ValueError(f"the captions of {len(members)} images are all empty: caption them again, or remove them")
