"""Tests of the classes of a DiT: found by name, and divided into groups."""

import pytest

from tests.tiny_models import DIT_NAMES
from vlcp_ray.models import dit_classes
from vlcp_ray.settings import ConfigError

KNOWN = {3: "tench, Tinca tinca", 5: "crane", 8: "crane", 9: "maillot, tank suit", 7: "maillot", 2: "Goldfish"}


@pytest.mark.parametrize(
    ("name", "number"),
    [("tench, Tinca tinca", 3), ("tench", 3), ("Tinca tinca, a fish", 3), ("goldfish", 2), ("maillot", 7)],
)
def test_match_finds_the_same_name_or_the_only_class_that_shares_one(name: str, number: int) -> None:
    assert dit_classes.match([name, "goldfish"], KNOWN, "some/model") == [number, 2]


@pytest.mark.parametrize("name", ["golden retriever", "crane", "tench, maillot"])
def test_match_of_an_unknown_or_ambiguous_name_names_it_and_the_fix(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"compare.minimax.model: some/model does not know '{name}', .*class_list"):
        dit_classes.match(["tench", name], KNOWN, "some/model")


def test_find_reads_the_names_of_a_folder(tiny_dit: str) -> None:
    assert dit_classes.find([DIT_NAMES[3], DIT_NAMES[700]], tiny_dit) == [3, 700]


def test_divide_keeps_the_order_and_every_label() -> None:
    assert dit_classes.divide([1, 4, 5, 7, 9], 2) == [[1, 4], [5, 7], [9]]
