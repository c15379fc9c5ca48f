"""Tests of the words of captions, against scikit-learn."""

from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from vlcp_ray.models.words import WORD, common_words, document_frequency, tokenize
from vlcp_ray.stages.prototype.text_prototype import find_candidate_words


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(st.sampled_from("aBc I'\u2019_-7.\u00e9\n"))))
def test_tokenize_of_any_text_equals_scikit_learn(text: str) -> None:
    analyze = CountVectorizer(stop_words="english", token_pattern=WORD).build_analyzer()
    vocabulary, word, row = tokenize([text, "", ""])
    assert [vocabulary[i] for i in word] == analyze(text)
    assert set(row) <= {0}


def test_tokenize_keeps_words_of_letters_without_contractions() -> None:
    text = "Long-haired 3rd x2 snake_case na\u00efve 'quoted' dogs' isn't isn\u2019t B."
    vocabulary, _, _ = tokenize([text])
    assert vocabulary == ("long", "haired", "na\u00efve", "quoted", "dogs", "b")


def test_document_frequency_counts_repeated_word_once_per_caption() -> None:
    vocabulary, word, row = tokenize(["red red blue", "red", ""])
    assert vocabulary == ("red", "blue")
    assert document_frequency(word, row, 2).tolist() == [2, 1]


def test_common_words_are_those_that_candidate_words_leave_out() -> None:
    captions = ["A grey round digit", "grey and wide digit", "Grey, round; GREY", "wide"]
    assert common_words(captions, 0.5) == [("grey", 0.75), ("round", 0.5), ("digit", 0.5), ("wide", 0.5)]
    candidates = find_candidate_words(captions, "digit", 0.75, "word")
    assert {candidates.vocabulary[i] for i in candidates.word} == set(candidates.vocabulary) - {"grey", "digit"}
    assert common_words(captions, 0.75) == [("grey", 0.75)]
    assert common_words([], 0.7) == []
