"""Tests of a distilled set as a torch Dataset."""

import pickle

import numpy as np

from tests.exports.conftest import IPC, NAMES, PIXELS, synthetic
from vlcp_ray.exports.torch_dataset import DistilledSet


def test_distilled_set_has_rgb_images_and_labels_in_the_order_of_the_rows() -> None:
    made = DistilledSet(synthetic(), NAMES)
    assert (len(made), made.classes) == (len(NAMES) * IPC, NAMES)
    assert [label for _, label in (made[number] for number in range(len(made)))] == made.targets
    assert all(
        (np.asarray(made[number][0]) == PIXELS.reshape(-1, 8, 8, 3)[number]).all() for number in range(len(made))
    )
    assert DistilledSet(synthetic(), NAMES, transform=lambda image: image.size)[0] == ((8, 8), 0)


def test_distilled_set_is_sent_to_the_workers_of_a_loader() -> None:
    made = pickle.loads(pickle.dumps(DistilledSet(synthetic(), NAMES)))
    assert (np.asarray(made[1][0]) == PIXELS[0, 1]).all()
