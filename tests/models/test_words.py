"""Tests of the words of captions, against scikit-learn and nltk."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from vlcp_ray.models.words import (
    WORD,
    Matching,
    common_words,
    document_frequency,
    split_like_nltk,
    stop_words,
    tokenize,
)
from vlcp_ray.stages.prototype.text_prototype import find_candidate_words


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(st.sampled_from("aBc I'\u2019_-7.\u00e9\n"))))
def test_tokenize_of_any_text_equals_scikit_learn(text: str) -> None:
    analyze = CountVectorizer(stop_words=sorted(stop_words()), token_pattern=WORD).build_analyzer()
    vocabulary, word, row = tokenize([text, "", ""], "word")
    assert [vocabulary[i] for i in word] == analyze(text)
    assert set(row) <= {0}


def test_tokenize_keeps_words_of_letters_without_contractions() -> None:
    text = "Long-haired 3rd x2 snake_case na\u00efve 'quoted' dogs' isn't isn\u2019t B."
    vocabulary, _, _ = tokenize([text], "word")
    assert vocabulary == ("long", "haired", "na\u00efve", "quoted", "dogs", "b")


@pytest.mark.parametrize("matching", ["word", "substring"])
def test_document_frequency_counts_repeated_word_once_per_caption(matching: Matching) -> None:
    vocabulary, word, row = tokenize(["red red blue", "red", ""], matching)
    assert vocabulary == ("red", "blue")
    assert document_frequency(word, row, 2).tolist() == [2, 1]


def test_stop_words_are_those_of_nltk_and_keep_words_of_appearance() -> None:
    words = stop_words()
    assert len(words) == 179
    assert {"the", "it", "is", "above", "isn't", "ma", "wouldn"} <= words
    seen = ["thin", "thick", "top", "bottom", "front", "back", "side", "full", "empty", "fire"]
    assert not words & set(seen)
    assert set(seen) <= ENGLISH_STOP_WORDS
    assert "t" in words  # what is left of "isn't"


def test_split_like_nltk_gives_tokens_of_letters() -> None:
    text = "The fan's top-heavy, NOT thin. It isn't 3rd; it's (very) na\u00efve -- 'quoted' \"blue\" a/b gonna x2."
    expected = ["the", "fan", "not", "thin", "it", "is", "it", "very", "naïve", "quoted", "blue", "gon", "na"]
    assert split_like_nltk(text) == expected


@settings(deadline=None)
@given(st.text(st.sampled_from("aBc I'\u2019_-7,;:()\"\u00e9")))
def test_split_like_nltk_of_one_sentence_equals_word_tokenize(text: str) -> None:
    tokens = word_tokenize(text, preserve_line=True)  # without the model of sentences, which is a download
    assert split_like_nltk(text) == [token.lower() for token in tokens if token.isalpha()]


def test_split_like_nltk_splits_sentences_at_full_stops() -> None:
    # Only at the end of a sentence is a full stop a token of its own.
    assert split_like_nltk("A red tail. Blue fin! Wide.Open") == ["a", "red", "tail", "blue", "fin"]


def test_tokenize_by_matching_keeps_or_drops_words_with_hyphens() -> None:
    captions = ["A top-heavy, thin dog isn't wide."]
    assert tokenize(captions, "word")[0] == ("top", "heavy", "thin", "dog", "wide")
    assert tokenize(captions, "substring")[0] == ("thin", "dog", "wide")


def test_common_words_are_those_that_candidate_words_leave_out() -> None:
    captions = ["A grey round digit", "grey and wide digit", "Grey, round; GREY", "wide"]
    assert common_words(captions, 0.5, "word") == [("grey", 0.75), ("round", 0.5), ("digit", 0.5), ("wide", 0.5)]
    candidates = find_candidate_words(captions, "digit", 0.75, "word")
    assert {candidates.vocabulary[i] for i in candidates.word} == set(candidates.vocabulary) - {"grey", "digit"}
    assert common_words(captions, 0.75, "word") == [("grey", 0.75)]
    assert common_words([], 0.7, "word") == []


def test_common_words_are_split_as_by_matching() -> None:
    captions = ["top-heavy digit", "top-heavy stroke"]
    assert common_words(captions, 1.0, "word") == [("top", 1.0), ("heavy", 1.0)]
    assert common_words(captions, 1.0, "substring") == []
