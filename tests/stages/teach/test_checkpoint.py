"""Tests of reading published weights."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hostile import Payload
from tests.labelled_digits import NAMES, digits
from vlcp_ray.config import Teach
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.models.teacher import load_teacher
from vlcp_ray.stages.teach.checkpoint import load_checkpoint
from vlcp_ray.stages.teach.train import TrainedTeacher, train_teacher

SETTINGS = Teach(network="ConvNet-3", width=16, input_size=16, epochs=8, batch_size=32, validations=4, flip=False)
TRAIN, VAL = digits(0, 300), digits(1000, 1200)


@pytest.fixture(scope="module")
def trained() -> TrainedTeacher:
    return train_teacher(TRAIN, VAL, NAMES, SETTINGS, 0, "cpu")


def written(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_load_checkpoint_with_a_payload_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    content = written({"state_dict": Payload(tmp_path / "EXECUTED", {})})
    with pytest.raises(ValueError, match=r"teach\.checkpoint"):
        load_checkpoint(content, NAMES)
    assert not (tmp_path / "EXECUTED").exists()


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "best": 0.9},
        lambda state: {"model": state, "class_names": list(NAMES)},
    ],
)
def test_load_checkpoint_reads_all_published_forms(trained: TrainedTeacher, wrapped: Any) -> None:
    state = load_checkpoint(written(wrapped(trained.state)), NAMES)
    assert same(state, trained.state)
    load_teacher(SETTINGS, state)


def test_load_checkpoint_of_torchvisions_weights_gives_its_logits() -> None:
    settings = Teach(network="ResNet-18", input_size=32)
    network = build_classifier("ResNet-18", num_classes=10, input_size=32, width=1, seed=3, norm="batch").eval()
    loaded = load_teacher(settings, load_checkpoint(written(network.state_dict()), NAMES))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(images), network(images))


def test_load_checkpoint_orders_outputs_by_class_name(trained: TrainedTeacher) -> None:
    subset = ("seven", "two", "nine")
    plain, selected = (
        load_teacher(SETTINGS, load_checkpoint(written({"model": trained.state, **extra}), names))
        for names, extra in ((NAMES, {}), (subset, {"classes": list(NAMES)}))
    )
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(selected(images), plain(images)[:, [7, 2, 9]])
    state = load_checkpoint(written(trained.state), subset, NAMES)
    assert same(state, dict(load_teacher(SETTINGS, state).state_dict()))
    torch.testing.assert_close(load_teacher(SETTINGS, state)(images), selected(images))


@pytest.mark.parametrize(
    ("content", "names", "message"),
    [
        (b"no checkpoint", NAMES, "not a state dict that can be read without running code"),
        (b"", NAMES, "not a state dict that can be read without running code"),
        (written(digits(0, 1)), NAMES, "without running code"),
        (written([1, 2]), NAMES, "holds a list, not a state dict"),
        (written({"model": {"a": torch.zeros(3)}}), NAMES, "no weights of a linear layer"),
        (written({"fc.weight": torch.zeros(10, 4)}), NAMES[:3], "has 10 outputs and no class list, for 3 classes"),
        (written({"fc.weight": torch.zeros(3, 4), "classes": ["a"]}), NAMES, "3 outputs and a class list of 1"),
        (written({"fc.weight": torch.zeros(2, 4), "classes": ["a", "b"]}), ("b", "c"), r"does not have \['c'\]"),
        (written({"fc.weight": torch.zeros(2, 4), "classes": ["a", "a"]}), ("a",), r"does not have \['a'\]"),
    ],
)
def test_load_checkpoint_of_an_unusable_file_is_refused(content: bytes, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=rf"teach\.checkpoint: .*{message}"):
        load_checkpoint(content, names)
