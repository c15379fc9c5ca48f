"""Tests of the choice of text prototypes, against plain loops, and where it differs from the released code."""

import random
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import CountVectorizer

from vlcp_ray.demo import digits
from vlcp_ray.demo.train import properties
from vlcp_ray.models.words import Matching, stop_words
from vlcp_ray.stages.prototype import Recipe, text_prototype
from vlcp_ray.stages.prototype.text_prototype import (
    TextPrototype,
    choose_text_prototype,
    find_candidate_words,
    representative_words,
)

WORDS = ("red", "Red", "blue", "covered", "fan", "tail", "the", "an", "Siberian", "2", "x9", "thin", "green.")
captions_ = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=1, max_size=12)
MATCHINGS: tuple[Matching, ...] = ("word", "substring")
matchings = st.sampled_from(MATCHINGS)


def split(text: str) -> list[str]:
    """Split a caption made of WORDS into lower-case alphabetic words without a regular expression."""
    return [word.strip(".") for word in text.lower().split() if word.strip(".").isalpha()]


def choose(
    captions: list[str], matching: Matching = "word", class_name: str = "thing", max_df: float = 1.0
) -> TextPrototype:
    """Choose the text prototype of a cluster that is the whole class but for an empty caption.

    With the empty caption no word is in all captions, so that max_df = 1 drops none.
    """
    words = find_candidate_words([*captions, ""], class_name, max_df, matching)
    return choose_text_prototype(words, np.arange(len(captions)), np.arange(len(captions), dtype=np.float32), 30)


def reference(
    captions: list[str], members: list[int], class_name: str, max_df: float, k: int, matching: Matching
) -> tuple[int, list[str]]:
    names = split(class_name) if matching == "word" else class_name
    frequency: Counter[str] = Counter()
    words_of = [set(split(text)) for text in captions]
    for i in members:
        for word in split(captions[i]):
            documents = sum(word in words for words in words_of)
            if documents < max_df * len(captions) and word not in stop_words() and word not in names:
                frequency[word] += 1
    top = frequency.most_common(k)
    best, best_score = -1, 0
    for i in members:
        text = split(captions[i]) if matching == "word" else captions[i]
        score = sum(count for word, count in top if word in text)
        if score > best_score:
            best, best_score = i, score
    return best, [word for word, _ in top]


@settings(deadline=None)
@given(captions_, st.data(), st.sampled_from([0.25, 0.5, 0.75, 1.0]), st.integers(1, 5), matchings)
def test_choose_text_prototype_equals_plain_loops(
    captions: list[str], data: st.DataObject, max_df: float, k: int, matching: Matching
) -> None:
    members = sorted(data.draw(st.sets(st.integers(0, len(captions) - 1), min_size=1)))
    best, top = reference(captions, members, "Blue tail", max_df, k, matching)
    words = find_candidate_words(captions, "Blue tail", max_df, matching)

    indices, count = representative_words(words, np.array(members), k)
    assert [words.vocabulary[i] for i in indices] == top
    assert list(count) == sorted(count, reverse=True)
    if best >= 0:
        expected = TextPrototype(best, tuple(top))
        assert choose_text_prototype(words, np.array(members), np.zeros(len(members)), k) == expected


@settings(deadline=None)
@given(captions_, matchings)
def test_choose_text_prototype_is_never_empty(captions: list[str], matching: Matching) -> None:
    captions = [*captions, "something"]
    words = find_candidate_words(captions, "a", 0.5, matching)
    choice = choose_text_prototype(words, np.arange(len(captions)), np.arange(len(captions), dtype=np.float32), 3)
    assert captions[choice.row].strip()


def test_candidate_words_drop_document_frequency_of_exactly_max_df() -> None:
    captions = [*["common rare"] * 6, "common", "filler", "filler", "filler"]
    assert find_candidate_words(captions, "", 0.7, "word").vocabulary == ("common", "rare", "filler")
    indices, _ = representative_words(find_candidate_words(captions, "", 0.7, "word"), np.arange(10), 30)
    assert list(indices) == [1, 2]
    assert "common" in CountVectorizer(max_df=0.7).fit(captions).vocabulary_  # scikit-learn keeps it


def test_candidate_words_use_max_df_as_exact_decimal() -> None:
    # In floating point 0.29 x 100 is 28.999999999999996 and 0.55 x 100 is 55.00000000000001.
    for percent in (29, 55):
        captions = ["striped"] * percent + ["\u2014"] * (100 - percent)
        for cluster, is_kept in ((captions, False), (["\u2014", *captions[1:]], True)):
            words = find_candidate_words(cluster, "", percent / 100, "word")
            assert len(representative_words(words, np.arange(100), 30)[0]) == is_kept


def test_word_matching_drops_whole_words_of_class_name_in_any_case() -> None:
    assert choose(["husky siberian an fan fa"], class_name="Siberian Husky, fan").words == ("fa",)


def test_substring_matching_drops_substrings_of_class_name_in_its_case() -> None:
    assert choose(["fa ipod"], "substring", "fan").words == ("ipod",)
    assert choose(["fa ipod"], "word", "fan").words == ("fa", "ipod")
    assert choose(["siberian husky"], "substring", "Siberian husky").words == ("siberian",)


def test_substring_matching_scores_words_within_words() -> None:
    captions = ["red red red", "covered blue"]
    assert choose(captions, "word").row == 0  # red 3 against covered 1 + blue 1
    assert choose(captions, "substring").row == 1  # red 3 + covered 1 + blue 1


def test_substring_matching_scores_caption_in_its_case() -> None:
    captions = ["Red Red Red", "plain red"]
    assert choose(captions, "word").row == 1  # red 4 + plain 1
    assert choose(captions[:1], "substring").words == ("red",)
    assert choose(["Red Red Red", "Red Red plain"], "substring").row == 1  # only "plain" is found
    assert choose(["Red plain", "Red Red Red"], "word").row == 0


def test_choose_text_prototype_with_ties_takes_first_caption_and_word() -> None:
    choice = choose(["beta alpha", "alpha beta"])
    assert choice == TextPrototype(0, ("beta", "alpha"))


def test_representative_words_with_ties_are_in_order_of_cluster() -> None:
    words = find_candidate_words(["beta", "alpha beta", "gamma"], "", 1.0, "word")
    indices, count = representative_words(words, np.array([1, 2]), 2)
    assert [words.vocabulary[i] for i in indices] == ["alpha", "beta"]
    assert list(count) == [1, 1]


def ordinary_captions(count: int, words: int, seed: int = 0) -> list[str]:
    """Make captions of `words` words each, out of 60 different ones."""
    vocabulary = [start + end for start in "bcdfghjklmnp" for end in ("ator", "elan", "ivor", "omet", "usky")]
    rng = random.Random(seed)
    return [" ".join(rng.choices(vocabulary, k=words)) for _ in range(count)]


@pytest.mark.parametrize("matching", ["word", "substring"])
def test_very_long_caption_is_neither_counted_nor_chosen(matching: Matching) -> None:
    ordinary, (very_long,) = ordinary_captions(50, 60), ordinary_captions(1, 5000, seed=1)
    captions = [*ordinary[:25], very_long, *ordinary[25:]]
    without = find_candidate_words(ordinary, "thing", 1.0, matching)
    words = find_candidate_words(captions, "thing", 1.0, matching)
    for seed in range(10):  # clusters that contain it
        others = np.sort(np.random.default_rng(seed).choice(50, 20, replace=False))
        members = np.sort([25, *(others + (others >= 25))])
        choice = choose_text_prototype(words, members, np.zeros(21), 30)
        expected = choose_text_prototype(without, others, np.zeros(20), 30)
        assert (captions[choice.row], choice.words) == (ordinary[expected.row], expected.words)


def test_very_long_caption_is_chosen_where_the_cluster_has_no_other() -> None:
    captions = [*ordinary_captions(4, 60), *ordinary_captions(2, 5000), " "]
    words = find_candidate_words(captions, "thing", 1.0, "word")
    assert choose_text_prototype(words, np.array([4]), np.zeros(1), 30).row == 4
    assert choose_text_prototype(words, np.array([5, 6]), np.array([1.0, 0.0]), 30).row == 5


def test_caption_of_four_times_the_usual_length_is_chosen_and_a_longer_one_is_not() -> None:
    for usual in (400, 4000):  # characters, so that the limits are 1,500 and 16,000
        limit = max(1500, 4 * usual)
        for length, is_chosen in ((limit, True), (limit + 1, False)):
            captions = ["red tail".ljust(usual, "."), "blue fin".ljust(usual, "."), "red tail fin".ljust(length, ".")]
            words = find_candidate_words(captions, "", 1.0, "word")
            choice = choose_text_prototype(words, np.arange(3), np.zeros(3), 30)
            assert choice.row == (2 if is_chosen else 0)


def test_very_long_captions_are_those_of_the_hashed_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = ["a" * length for length in (10, 10, 10, 21, 31, 50)]  # the median is 15.5
    for recipe, expected in ((Recipe(20, 2), 1), (Recipe(20, 1), 3), (Recipe(40, 1), 1)):
        monkeypatch.setattr(text_prototype, "RECIPE", recipe)
        assert find_candidate_words(captions, "", 1.0, "word").is_very_long.sum() == expected


def test_captions_of_a_class_that_are_all_long_are_usual() -> None:
    captions = [*ordinary_captions(20, 800), ""]  # with "" no word is in all captions
    words = find_candidate_words(captions, "thing", 1.0, "word")
    assert not words.is_very_long.any()
    best, top = reference(captions, list(range(20)), "thing", 1.0, 30, "word")
    assert choose_text_prototype(words, np.arange(20), np.zeros(20), 30) == TextPrototype(best, tuple(top))


@pytest.mark.parametrize("captions", [["the", "", "an an"], ["1 2", " ", "x9"]])
def test_choose_text_prototype_without_words_takes_nearest_caption(captions: list[str]) -> None:
    words = find_candidate_words(captions, "", 0.7, "word")
    assert choose_text_prototype(words, np.arange(3), np.array([2.0, 0.0, 1.0]), 30) == TextPrototype(2, ())


def test_choose_text_prototype_without_score_takes_nearest_caption() -> None:
    words = find_candidate_words(["RED", "BLUE", "green"], "", 0.7, "substring")
    choice = choose_text_prototype(words, np.array([0, 1]), np.array([2.0, 1.0]), 30)
    assert choice == TextPrototype(1, ("red", "blue"))


def test_choose_text_prototype_of_empty_captions_raises() -> None:
    with pytest.raises(ValueError, match="2 images are all empty: caption them again"):
        choose_text_prototype(find_candidate_words(["", " "], "", 0.7, "word"), np.arange(2), np.zeros(2), 30)


def released_choice(texts: Sequence[str], members: Sequence[int], class_name: str, max_df: float, k: int) -> str:
    """Choose a cluster's text as the released code does: METHOD's five steps with nltk's tokens, "" if nothing scores.

    The captions of the digits end a sentence at each full stop, so that nltk's model of sentences is not needed.
    """

    def words(text: str) -> list[str]:
        sentences = re.split(r"(?<=\.) ", text)
        return [t.lower() for one in sentences for t in word_tokenize(one, preserve_line=True) if t.isalpha()]

    containing = Counter(word for text in texts for word in set(words(text)))
    frequency = Counter(
        word
        for row in members
        for word in words(texts[row])
        if word not in stop_words() and word not in class_name and containing[word] < max_df * len(texts)
    )
    best, highest = "", 0
    for row in members:
        score = sum(count for word, count in frequency.most_common(k) if word in texts[row])
        if score > highest:
            best, highest = texts[row], score
    return best


def test_text_prototypes_of_the_digits_are_those_of_the_released_code() -> None:
    images, labels = digits.load("train")
    rng, same_by_word, clusters = random.Random(0), 0, 0
    for label, class_name in enumerate(digits.CLASS_NAMES):
        own = images[labels == label]
        texts = [properties.write_caption(image, class_name, rng) for image in own]
        by_matching = {m: find_candidate_words(texts, class_name, 0.7, m) for m in MATCHINGS}
        for ipc in (5, 10):
            assigned = KMeans(ipc, n_init=1, random_state=0).fit_predict(own.reshape(len(own), -1))
            for cluster in range(ipc):
                members = np.flatnonzero(assigned == cluster)
                expected = released_choice(texts, members.tolist(), class_name, 0.7, 30)
                chosen = {
                    m: texts[choose_text_prototype(words, members, np.zeros(len(members)), 30).row]
                    for m, words in by_matching.items()
                }
                assert expected
                assert chosen["substring"] == expected
                same_by_word += chosen["word"] == expected
                clusters += 1
    assert clusters == 150
    assert 50 < same_by_word < 140  # the default differs on purpose: whole words, and both parts of "top-heavy"
