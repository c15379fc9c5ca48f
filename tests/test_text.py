"""Knows METHOD 2.5 as plain loops, and the places where the released code is odd."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from vlcp_ray.text import WORD, Choice, Matching, choose_text, clean, common_words, count_words, representative_words

WORDS = ("red", "Red", "blue", "covered", "fan", "tail", "the", "an", "Siberian", "2", "x9", "isn't", "green.")
texts_ = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=1, max_size=12)
matchings = st.sampled_from(["word", "substring"])


def tokens(text: str) -> list[str]:
    """Lower-cased alphabetic words of texts made of WORDS: no regular expression, unlike the code."""
    return [word.strip(".") for word in text.lower().split() if word.strip(".").isalpha()]


def chosen(texts: list[str], matching: Matching = "word", class_name: str = "thing", max_df: float = 1.0) -> Choice:
    """The choice in a cluster that is the whole class, beside a description that keeps max_df = 1 out of the way."""
    words = count_words([*texts, ""], class_name, max_df, matching)
    return choose_text(words, np.arange(len(texts)), np.arange(len(texts), dtype=np.float32), 30)


def reference(
    texts: list[str], members: list[int], class_name: str, max_df: float, k: int, matching: Matching
) -> tuple[int, list[str]]:
    names = tokens(class_name) if matching == "word" else class_name
    frequency: Counter[str] = Counter()
    for i in members:
        for word in tokens(texts[i]):
            documents = sum(word in tokens(text) for text in texts)
            if documents < max_df * len(texts) and word not in ENGLISH_STOP_WORDS and word not in names:
                frequency[word] += 1
    top = frequency.most_common(k)
    best, best_score = -1, 0
    for i in members:
        text = tokens(texts[i]) if matching == "word" else texts[i]
        score = sum(count for word, count in top if word in text)
        if score > best_score:
            best, best_score = i, score
    return best, [word for word, _ in top]


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(st.sampled_from("aBc I'\u2019_-7.\u00e9\n"))))
def test_words_are_those_of_scikit_learn_whatever_the_text(text: str) -> None:
    analyze = CountVectorizer(stop_words="english", token_pattern=WORD).build_analyzer()
    words = count_words([text, "", ""], "", 1.0, "word")
    assert [words.vocabulary[i] for i in words.word] == analyze(text)


@settings(deadline=None)
@given(texts_, st.data(), st.sampled_from([0.25, 0.5, 0.75, 1.0]), st.integers(1, 5), matchings)
def test_the_choice_is_that_of_plain_loops(
    texts: list[str], data: st.DataObject, max_df: float, k: int, matching: Matching
) -> None:
    members = sorted(data.draw(st.sets(st.integers(0, len(texts) - 1), min_size=1)))
    best, top = reference(texts, members, "Blue tail", max_df, k, matching)
    words = count_words(texts, "Blue tail", max_df, matching)

    found, count = representative_words(words, np.array(members), k)
    assert [words.vocabulary[i] for i in found] == top
    assert list(count) == sorted(count, reverse=True)
    if best >= 0:
        assert choose_text(words, np.array(members), np.zeros(len(members)), k) == Choice(best, tuple(top))


@settings(deadline=None)
@given(texts_, matchings)
def test_a_text_is_never_empty(texts: list[str], matching: Matching) -> None:
    texts = [*texts, "something"]
    words = count_words(texts, "a", 0.5, matching)
    choice = choose_text(words, np.arange(len(texts)), np.arange(len(texts), dtype=np.float32), 3)
    assert texts[choice.row].strip()


def test_document_frequency_of_exactly_max_df_is_too_common() -> None:
    texts = [*["common rare"] * 6, "common", "filler", "filler", "filler"]
    assert count_words(texts, "", 0.7, "word").vocabulary == ("common", "rare", "filler")
    found, _ = representative_words(count_words(texts, "", 0.7, "word"), np.arange(10), 30)
    assert list(found) == [1, 2]
    assert "common" in CountVectorizer(max_df=0.7).fit(texts).vocabulary_  # what is not wanted


def test_max_df_is_the_decimal_that_the_job_says() -> None:
    # In floating point 0.29 x 100 is 28.999999999999996 and 0.55 x 100 is 55.00000000000001.
    for percent in (29, 55):
        texts = ["striped"] * percent + ["\u2014"] * (100 - percent)
        for cluster, kept in ((texts, False), (["\u2014", *texts[1:]], True)):
            words = count_words(cluster, "", percent / 100, "word")
            assert len(representative_words(words, np.arange(100), 30)[0]) == kept


def test_class_name_goes_by_whole_words_whatever_their_case() -> None:
    assert chosen(["husky siberian an fan fa"], class_name="Siberian Husky, fan").words == ("fa",)


def test_substring_drops_what_the_class_name_holds_as_it_is_written() -> None:
    assert chosen(["fa ipod"], "substring", "fan").words == ("ipod",)
    assert chosen(["fa ipod"], "word", "fan").words == ("fa", "ipod")
    assert chosen(["siberian husky"], "substring", "Siberian husky").words == ("siberian",)


def test_substring_finds_words_within_words() -> None:
    texts = ["red red red", "covered blue"]
    assert chosen(texts, "word").row == 0  # red 3 against covered 1 + blue 1
    assert chosen(texts, "substring").row == 1  # red 3 + covered 1 + blue 1


def test_substring_scores_the_text_in_its_own_case() -> None:
    texts = ["Red Red Red", "plain red"]
    assert chosen(texts, "word").row == 1  # red 4 + plain 1
    assert chosen(texts[:1], "substring").words == ("red",)
    assert chosen(["Red Red Red", "Red Red plain"], "substring").row == 1  # only plain is found
    assert chosen(["Red plain", "Red Red Red"], "word").row == 0


def test_ties_go_to_the_first_description_and_the_first_word() -> None:
    choice = chosen(["beta alpha", "alpha beta"])
    assert choice == Choice(0, ("beta", "alpha"))


def test_first_seen_is_first_in_the_cluster() -> None:
    words = count_words(["beta", "alpha beta", "gamma"], "", 1.0, "word")
    found, count = representative_words(words, np.array([1, 2]), 2)
    assert [words.vocabulary[i] for i in found] == ["alpha", "beta"]
    assert list(count) == [1, 1]


@pytest.mark.parametrize("texts", [["the", "", "an an"], ["1 2", " ", "x9"]])
def test_without_words_the_nearest_description_is_taken(texts: list[str]) -> None:
    words = count_words(texts, "", 0.7, "word")
    assert choose_text(words, np.arange(3), np.array([2.0, 0.0, 1.0]), 30) == Choice(2, ())


def test_without_a_score_the_nearest_description_is_taken() -> None:
    words = count_words(["RED", "BLUE", "green"], "", 0.7, "substring")
    choice = choose_text(words, np.array([0, 1]), np.array([2.0, 1.0]), 30)
    assert choice == Choice(1, ("red", "blue"))


def test_empty_descriptions_alone_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 images are all empty: caption them anew"):
        choose_text(count_words(["", " "], "", 0.7, "word"), np.arange(2), np.zeros(2), 30)


def test_words_are_letters_without_contractions() -> None:
    text = "Long-haired 3rd x2 snake_case na\u00efve 'quoted' dogs' isn't isn\u2019t B."
    vocabulary = count_words([text], "", 1.0, "word").vocabulary
    assert vocabulary == ("long", "haired", "na\u00efve", "quoted", "dogs", "b")


def test_clean_strips_what_the_released_code_strips() -> None:
    assert clean(' The "dog\'s"\n coat\t is  brown. ') == "The dog coat is brown."
    assert clean('"\'s" \n') == ""


@settings(deadline=None)
@given(st.text())
def test_clean_leaves_single_spaces_and_no_double_quote(answer: str) -> None:
    cleaned = clean(answer)
    assert '"' not in cleaned
    assert cleaned == " ".join(cleaned.split())


def test_common_words_are_those_that_counting_drops_but_for_the_class_name() -> None:
    texts = ["A grey round digit", "grey and wide digit", "Grey, round; GREY", "wide"]
    assert common_words(texts, 0.5) == [("grey", 0.75), ("round", 0.5), ("digit", 0.5), ("wide", 0.5)]
    kept = set(count_words(texts, "digit", 0.75, "word").vocabulary)
    counted = count_words(texts, "digit", 0.75, "word")
    assert {counted.vocabulary[i] for i in counted.word} == kept - {"grey", "digit"}
    assert common_words(texts, 0.75) == [("grey", 0.75)]
    assert common_words([], 0.7) == []
