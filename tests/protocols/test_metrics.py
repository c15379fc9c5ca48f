"""Tests of predictions, accuracies and confusion matrices."""

import numpy as np
import pytest
import torch

from vlcp_ray.protocols.metrics import accuracy, confusion_matrix, guesses, predict


class FixedRanks(torch.nn.Module):
    """Ranks the labels 6, 5, 4, 3, 2, 1, 0 for every image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.arange(7.0).expand(len(images), 7)


def test_accuracy_counts_the_first_and_the_first_five_predictions() -> None:
    labels = torch.tensor([6, 6, 5, 2, 1, 0] * 20)
    predicted = predict(FixedRanks(), np.zeros((120, 3, 8, 8), np.uint8))
    assert predicted.tolist() == [[6, 5, 4, 3, 2]] * 120
    assert accuracy(predicted, labels) == (pytest.approx(2 / 6), pytest.approx(4 / 6))


def test_predict_runs_in_eval_mode_and_restores_the_mode() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(3 * 64, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 3, 8, 8), dtype=np.uint8)
    pixels.flags.writeable = False  # as it is mapped from a file
    before = {name: value.clone() for name, value in network.state_dict().items()}
    together = predict(network, pixels)
    assert network.training
    assert together.tolist() == [predict(network, one)[0].tolist() for one in pixels[:, None]]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    predict(network.eval(), pixels)
    assert not network.training


def test_confusion_matrix_has_a_row_for_every_label() -> None:
    predicted, labels = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 2, 2, 2])
    assert confusion_matrix(predicted, labels, 4).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def answers(hits: int, images: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of balanced classes, and predictions of which so many hit."""
    labels = torch.arange(images) % classes
    return torch.where(torch.arange(images) < hits, labels, (labels + 1) % classes), labels


@pytest.mark.parametrize(
    ("hits", "images", "classes", "expected"),
    [
        (10, 100, 10, True),
        (22, 100, 10, True),  # 10 + 4 * 3
        (23, 100, 10, False),
        (1120, 10_000, 10, True),  # 1,000 + 4 * 30
        (1121, 10_000, 10, False),
        (500, 1000, 2, True),
        (8, 16, 2, False),  # 8 + 4 * 2: all of them may be guessed
        (0, 100, 10, True),
    ],
)
def test_guesses_of_accuracies_that_guessing_may_have(hits: int, images: int, classes: int, expected: bool) -> None:
    assert guesses(*answers(hits, images, classes)) is expected


def test_guesses_of_one_answer_for_all_images_and_of_the_most_frequent_class() -> None:
    labels = torch.tensor([0] * 30 + list(range(1, 10)) * 8)
    assert guesses(torch.zeros_like(labels), labels)  # 29 % right
    assert guesses(torch.tensor([1, 1]), torch.tensor([0, 1]))
    few = torch.where(torch.arange(len(labels)) < 40, labels, (labels + 1) % 10)
    assert guesses(few, labels)  # 39 %: less than 29 % + 4 * 4.5 %
