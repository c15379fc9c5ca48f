"""Tests of el2n and forgetting: the most difficult images of every class, by the mean over the networks."""

import pyarrow as pa
import pytest

from vlcp_ray.methods.difficulty import el2n_ids, forgetting_ids
from vlcp_ray.stages.rank import DIFFICULTY


def index(scores: dict[str, list[tuple[float, int]]], shuffled: bool = False) -> pa.Table:
    """DIFFICULTY of two classes: ids that begin with a and b, by network EL2N and forgettings."""
    rows = [
        {
            "image_id": image_id,
            "label": int(image_id.startswith("b")),
            "class_name": image_id[0],
            "network": network,
            "el2n": el2n,
            "forgettings": forgettings,
        }
        for image_id, by_network in scores.items()
        for network, (el2n, forgettings) in enumerate(by_network)
    ]
    return pa.Table.from_pylist(rows[::-1] if shuffled else rows, schema=DIFFICULTY)


SCORES = {
    "a1": [(0.1, 3), (0.9, 3)],
    "a2": [(0.6, 0), (0.6, 9)],
    "a3": [(0.7, 0), (0.1, -1)],
    "b1": [(1.0, 1), (1.0, 1)],
    "b2": [(1.1, 0), (1.0, 0)],
}


@pytest.mark.parametrize("shuffled", [False, True])
def test_el2n_ids_are_those_of_the_largest_mean(shuffled: bool) -> None:
    assert el2n_ids(index(SCORES, shuffled), 0, 1) == ["a2", "b2"]
    assert el2n_ids(index(SCORES, shuffled), 0, 2) == ["a2", "a1", "b2", "b1"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_forgetting_ids_count_an_image_that_is_never_right_as_forgotten_most_often(shuffled: bool) -> None:
    assert forgetting_ids(index(SCORES, shuffled), 0, 2) == ["a3", "a2", "b1", "b2"]


def test_ids_with_equal_scores_depend_on_the_seed_and_nest() -> None:
    equal = index({f"a{number}": [(0.5, 1)] for number in range(20)})
    by_seed = [el2n_ids(equal, seed, 5) for seed in range(3)]
    assert by_seed[0] != by_seed[1]
    assert el2n_ids(equal, 0, 3) == by_seed[0][:3]
    assert forgetting_ids(equal, 0, 5) == by_seed[0]


def test_ids_of_too_small_a_class_name_it() -> None:
    with pytest.raises(ValueError, match=r"class 'b' has 2 training images, fewer than ipc = 3"):
        el2n_ids(index(SCORES), 0, 3)
