"""Tests of measuring difficulty: EL2N and forgetting counts of early networks on real digits."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.labelled_digits import NAMES, digits
from vlcp_ray.protocols.labelled_images import LabelledImages
from vlcp_ray.stages.rank import DIFFICULTY
from vlcp_ray.stages.rank.difficulty import Forgetting, measure_difficulty
from vlcp_ray.stages.teach import Teach

SETTINGS = Teach(network="ConvNet-3", width=16, input_size=16, epochs=8, batch_size=32, flip=False)
COUNT = 300


def identities(labels: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "image_id": [f"i{number:03d}" for number in range(len(labels))],
            "label": pa.array(labels, pa.int32()),
            "class_name": [NAMES[label] for label in labels],
        }
    )


def measure(train: LabelledImages, network: int = 0, epochs: int = 5) -> pa.Table:
    return measure_difficulty(identities(train.labels), train, NAMES, SETTINGS, epochs, network, "cpu")


def test_measure_difficulty_finds_wrong_labels_most_difficult() -> None:
    right = digits(0, COUNT)
    wrong = right.labels.copy()
    wrong[:10] = (wrong[:10] + 1) % 10
    table = measure(LabelledImages(right.pixels, wrong))
    assert table.schema == DIFFICULTY
    el2n = table["el2n"].to_numpy()
    assert el2n[:10].mean() > el2n[10:].mean() + 0.3
    assert 0 <= el2n.min() <= el2n.max() <= np.sqrt(2) + 1e-5
    assert set(table["network"].to_pylist()) == {0}
    assert max(table["forgettings"].to_pylist()) < 5


def test_measure_difficulty_depends_on_the_number_of_the_network_and_not_on_global_state() -> None:
    train = digits(0, 100)
    one = measure(train, epochs=1)
    torch.manual_seed(7)
    assert measure(train, epochs=1).equals(one)
    assert not measure(train, 1, epochs=1)["el2n"].equals(one["el2n"])


def test_measure_difficulty_that_diverges_names_the_setting() -> None:
    train = digits(0, 100)
    wild = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(ValueError, match=r"rank: the network diverges; lower teach\.learning_rate"):
        measure_difficulty(identities(train.labels), train, NAMES, wild, 2, 0, "cpu")


def test_forgetting_counts_changes_from_right_to_wrong() -> None:
    forgetting = Forgetting(torch.tensor([0, 0, 1, 1]))
    right, wrong = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Images 0 to 3: always right; right, wrong, right, wrong; never right; wrong, then right.
    for epoch in range(4):
        logits = torch.stack([right, right if epoch % 2 == 0 else wrong, right, wrong if epoch > 1 else right])
        order = torch.tensor([2, 0, 3, 1])
        forgetting.observe(order[:2], logits[order[:2]])
        forgetting.observe(order[2:], logits[order[2:]])
    assert forgetting.counts().tolist() == [0, 2, -1, 0]
