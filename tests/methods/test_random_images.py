"""Tests of random sets."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray.methods.random_images import random_ids


def index(n: int = 300) -> pa.Table:
    ids = [f"i{i}" for i in range(n)]
    return pa.table({"image_id": ids, "class_name": [f"class {i % 7}" for i in range(n)]})


def test_random_ids_has_ipc_different_images_of_every_class() -> None:
    selected = random_ids(index(), seed=0, ipc=5)
    classes = dict(zip(*(index()[name].to_pylist() for name in ("image_id", "class_name")), strict=True))
    assert len(set(selected)) == len(selected)
    assert Counter(classes[image_id] for image_id in selected) == dict.fromkeys(set(classes.values()), 5)


def test_random_ids_depends_on_the_seed_and_not_on_the_order() -> None:
    shuffled = index().take(np.random.default_rng(0).permutation(300))
    assert random_ids(shuffled, 0, 5) == random_ids(index(), 0, 5)
    assert set(random_ids(index(), 1, 5)) != set(random_ids(index(), 0, 5))


def test_random_ids_of_smaller_ipc_are_part_of_the_larger() -> None:
    assert set(random_ids(index(), 0, 1)) < set(random_ids(index(), 0, 5))


def test_random_ids_of_too_small_a_class_names_it() -> None:
    with pytest.raises(
        ValueError, match="class 'class 0' has 3 training images, fewer than ipc = 4: lower ipc or add images"
    ):
        random_ids(index(21), 0, 4)
