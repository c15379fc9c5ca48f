"""Tests of the scale of tensors: found where the numbers show it, refused where they do not."""

import numpy as np
import pytest

from vlcp_ray.scoring.scales import NORMALISATIONS, Scale, find_scale, named_scale, parse
from vlcp_ray.settings import ConfigError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)


def normalised(name: str, pixels: np.ndarray = PIXELS) -> np.ndarray:
    mean, std = (np.array(values)[:, None, None] for values in NORMALISATIONS[name])
    return ((pixels / 255 - mean) / std).astype(np.float32)


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        (PIXELS, "uint8, 0 to 255"),
        (PIXELS.astype(np.int64), "int64, 0 to 255"),
        (PIXELS.astype(np.float32), "float32, 0 to 255"),
        ((PIXELS / 255).astype(np.float32), "float32, 0 to 1"),
        ((PIXELS / 255).astype(np.float16).astype(np.float32), "float32, 0 to 1"),
        *((normalised(name), f"float32, normalised by {name}") for name in NORMALISATIONS),
    ],
)
def test_find_scale_gives_the_same_pixels_for_every_scale(numbers: np.ndarray, name: str) -> None:
    scale = find_scale(numbers, "x.pt")
    assert scale.name == name
    pixels, clipped = scale.pixels(numbers)
    assert (pixels == PIXELS).all()
    assert clipped == 0


@pytest.mark.parametrize("name", [name for name, values in NORMALISATIONS.items() if len(values[0]) == 3])
def test_find_scale_of_8_bits_knows_a_normalisation_without_black_and_white(name: str) -> None:
    pixels = np.random.default_rng(5).integers(60, 200, (20, 3, 8, 8), dtype=np.uint8)
    scale = find_scale(normalised(name, pixels), "x.pt")
    assert scale.name == f"float32, normalised by {name}"
    assert (scale.pixels(normalised(name, pixels))[0] == pixels).all()


def test_find_scale_takes_dark_whole_numbers_but_not_zeros_and_ones() -> None:
    assert find_scale(PIXELS // 86, "x.pt").name == "uint8, 0 to 255"  # 0, 1 and 2
    with pytest.raises(ConfigError, match="from 0 to 1, whole numbers"):
        find_scale(PIXELS // 128, "x.pt")


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "cifar100", "half"])
def test_find_scale_of_clipped_numbers_knows_a_normalisation_by_its_ends(name: str) -> None:
    values = np.random.default_rng(1).normal(0.5, 0.4, (20, 3, 8, 8)).clip(0, 1)  # no whole 255ths
    assert find_scale(normalised(name, values * 255), "x.pt").name == f"float32, normalised by {name}"


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        (np.random.default_rng(2).normal(0, 1, (4, 3, 8, 8)), "they are normalised or whitened, and the file does not"),
        (PIXELS / 255 / 255, "black, on any scale that is usual"),
        (PIXELS / 32, "neither 0 to 1 nor 0 to 255"),
        (PIXELS.astype(np.int64) + 200, "those of 8 bits run from 0 to 255"),
        (PIXELS.astype(np.int64) - 128, "those of 8 bits run from 0 to 255"),
    ],
)
def test_find_scale_that_is_not_clear_is_refused(numbers: np.ndarray, sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"^x\.pt: the numbers of the images run from") as error:
        find_scale(numbers, "x.pt")
    assert sentence in str(error.value)


def test_named_scale_takes_numbers_that_do_not_show_it_and_counts_what_is_clipped() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.3, (20, 3, 8, 8))
    numbers = normalised("cifar10", values * 255)
    pixels, clipped = named_scale(numbers, "cifar10", "x.pt").pixels(numbers)
    assert (pixels == np.rint(values * 255).clip(0, 255)).mean() > 0.999  # float32 moves some halves
    assert clipped == pytest.approx(((values * 255 < -0.5) | (values * 255 > 255.5)).mean(), abs=1e-3)
    own = "0.4914,0.4822,0.4465/0.2023,0.1994,0.2010"
    assert (named_scale(numbers, own, "x.pt").pixels(numbers)[0] == pixels).all()


@pytest.mark.parametrize(
    ("numbers", "name", "sentence"),
    [
        (PIXELS, "cifar10", "no number of the images of x.pt is below 0"),
        (PIXELS / 255, "imagenet", "no number of the images of x.pt is below 0"),
        (normalised("cifar10"), "imagenet", "the numbers of x.pt fit cifar10"),
        (np.random.default_rng(4).normal(0, 9, (9, 3, 8, 8)), "imagenet", "would lie outside 0 to 1"),
        (normalised("half")[:, :1], "cifar10", "it is of three channels"),
        (normalised("half")[:, :1], "0.5,0.5,0.5/0.2", "it is of three channels"),
        (normalised("half")[:, :1], "0.5/0.2,0.2,0.2", "it is of three channels"),
        (normalised("half"), "cifar11", "give one of imagenet"),
        (normalised("half"), "0.5,0.5/0.2", "give one of imagenet"),
        (normalised("half"), "0.5/0", "give one of imagenet"),
        (normalised("half"), "nan/1", "give one of imagenet"),
    ],
)
def test_named_scale_that_the_numbers_refute_is_refused(numbers: np.ndarray, name: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        named_scale(numbers, name, "x.pt")
    assert str(error.value).startswith(f"--normalised {name}: ")
    assert sentence in str(error.value)


def test_parse_takes_one_number_for_all_channels() -> None:
    assert parse("0.5/0.25") == ((0.5,), (0.25,))
    scale = Scale("", *parse("0.5/0.25"))
    assert scale.values(np.full((1, 3, 2, 2), -1.0)) == pytest.approx(np.full((1, 3, 2, 2), 0.25))
