"""Tests of the printed glyphs: a function of the seed, with every character, drawn as their style says."""

import string
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from vlcp_ray.demo import digits
from vlcp_ray.demo.train import __main__ as training
from vlcp_ray.demo.train import glyphs, properties, tokens, unet, vae
from vlcp_ray.demo.train.glyphs import Style, draw


def drawn(character: str = "H", **style: Any) -> NDArray[np.uint8]:
    return draw(character, replace(Style(), **style), np.random.default_rng(0))


def test_bank_is_a_function_of_the_seed() -> None:
    images, names = glyphs.bank(20, seed=0)
    again, same_names = glyphs.bank(30, seed=0)
    assert images.shape == (20, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, again[:20])
    assert names == same_names[:20]
    assert not np.array_equal(images, glyphs.bank(20, seed=1)[0])


def test_bank_has_every_character_half_of_them_digits() -> None:
    count = Counter(glyphs.bank(1040, seed=0)[1])
    assert set(count) == set(glyphs.NAMES.values())
    assert {count[name] for name in digits.CLASS_NAMES} == {52}
    assert {count[glyphs.NAMES[letter]] for letter in string.ascii_letters} == {10}


def test_bank_shows_every_word_of_every_property() -> None:
    words = [properties.words(image) for image in glyphs.bank(600, seed=0)[0]]
    for name, kind in properties.PROPERTIES.items():
        count = Counter(own[name] for own in words)
        assert min(count[word] for word in kind.words) > 0.04 * len(words), (name, count)


@pytest.mark.parametrize("font", glyphs.FONTS)
def test_fonts_have_all_characters_inside_the_image(font: str) -> None:
    images = {character: drawn(character, font=font, cells=32) for character in glyphs.NAMES}
    assert len({image.tobytes() for image in images.values()}) == len(glyphs.NAMES)
    for image in images.values():
        assert image.max() > 200
        assert (image > 20).any(axis=(0, 2)).sum() <= 31
        assert (image > 20).any(axis=(1, 2)).sum() >= 10


@pytest.mark.parametrize(
    ("name", "values", "measure"),
    [
        ("weight", (-1, 1, 4), "stroke"),
        ("slant", (-0.4, 0.0, 0.3), "slant"),
        ("width", (0.7, 0.9, 1.1), "width"),
        ("right", (-2.0, 0.0, 2.0), "position"),
        ("down", (-2.0, 0.0, 2.0), "balance"),
        ("brightness", (0.6, 0.8, 1.0), "colour"),
    ],
)
@pytest.mark.parametrize("character", "3H")
def test_draw_follows_its_style(name: str, values: tuple[float, ...], measure: str, character: str) -> None:
    measured = [properties.measure(drawn(character, **{name: value}))[measure] for value in values]
    assert measured == sorted(measured)
    assert measured[0] < measured[-1]


def test_draw_with_weight_has_more_ink_and_without_cells_is_blurred() -> None:
    assert drawn(weight=4).mean() > 1.3 * drawn(weight=0).mean()
    sharp, blurred = (np.abs(np.diff(drawn(cells=cells).astype(float), axis=1)).max() for cells in (32, 7))
    assert sharp > 1.5 * blurred


def test_draw_slanted_has_the_shear_of_its_style() -> None:
    upright, slanted = (properties.measure(drawn(slant=slant))["slant"] for slant in (0.0, 0.3))
    assert slanted - upright == pytest.approx(0.3, abs=0.05)


def test_draw_with_noise_changes_inked_cells_only() -> None:
    clean, noisy = (drawn(noise=noise, cells=32) for noise in (0.0, 0.1))
    assert not np.array_equal(clean, noisy)
    assert np.array_equal(clean[clean == 0], noisy[clean == 0])


def test_stable_diffusion_is_trained_without_the_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse() -> NoReturn:
        raise AssertionError("the training of the tiny Stable Diffusion reads the digits")

    monkeypatch.setattr(digits, "_read", refuse)
    monkeypatch.setattr(glyphs, "COUNT", 64)
    monkeypatch.setattr(vae, "train", partial(vae.train, steps=1))
    monkeypatch.setattr(unet, "train", partial(unet.train, steps=1))
    training.train_stable_diffusion(tmp_path)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size > 1_000_000


def test_clip_tokenizer_reads_letters_and_is_that_of_the_package(tmp_path: Path) -> None:
    tokenizer = tokens.clip_tokenizer(tmp_path)
    ids = {tuple(tokenizer(name).input_ids) for name in glyphs.NAMES.values()}
    assert len(ids) == len(glyphs.NAMES)
    assert tokenizer.unk_token_id not in [number for own in ids for number in own[1:-1]]
    packaged = Path(training.DEMO, "stable_diffusion", "tokenizer")
    assert (tmp_path / "vocab.json").read_text() == (packaged / "vocab.json").read_text()
