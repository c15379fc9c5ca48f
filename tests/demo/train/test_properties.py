"""Tests of the seven properties of a digit: measured, put into captions and read back."""

import random
from collections import Counter

import numpy as np
import pytest

from vlcp_ray.demo import digits
from vlcp_ray.demo.train import properties


def test_words_of_the_train_digits_are_balanced() -> None:
    images, _ = digits.load("train")
    measured = [properties.words(image) for image in images]
    for name, kind in properties.PROPERTIES.items():
        counts = Counter(words[name] for words in measured)
        assert set(counts) == set(kind.words), name
        assert max(counts.values()) < 0.7 * len(images), name
        assert min(counts.values()) > 0.03 * len(images), name


def test_read_of_a_caption_gives_the_words_of_its_image() -> None:
    images, labels = digits.load("val")
    rng = random.Random(0)
    for image, label in zip(images, labels, strict=True):
        text = properties.write_caption(image, digits.CLASS_NAMES[label], rng)
        assert properties.read(text) == properties.words(image), text
        assert digits.CLASS_NAMES[label] in text


def test_write_caption_is_a_function_of_image_and_rng() -> None:
    image = digits.load("val")[0][0]
    texts = {properties.write_caption(image, "digit three", random.Random(seed)) for seed in range(20)}
    assert properties.write_caption(image, "digit three", random.Random(1)) in texts
    assert len(texts) > 10


def test_measure_of_thicker_ink_is_thicker_and_wider() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[4:28, 14:17] = 255
    thick = image.copy()
    thick[4:28, 10:21] = 255
    assert properties.measure(thick)["stroke"] > properties.measure(image)["stroke"]
    assert properties.measure(thick)["width"] > properties.measure(image)["width"]


def test_words_of_a_ring_have_one_loop_and_of_an_empty_image_none() -> None:
    image = np.zeros((32, 32), np.uint8)
    image[8:24, 8:24] = 255
    image[13:19, 13:19] = 0
    assert properties.words(image)["loops"] == "one"
    assert properties.words(np.zeros((32, 32), np.uint8))["loops"] == "none"


def test_measure_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="resize the image"):
        properties.measure(np.zeros((64, 64, 3), np.uint8))


def test_read_of_an_unrelated_text_finds_nothing() -> None:
    assert properties.read("A photograph of a church in the evening.") == {}
