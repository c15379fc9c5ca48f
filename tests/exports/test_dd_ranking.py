"""Tests of the tensors for DD-Ranking: its normalisation, its order, and labels by class."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from tests.exports.conftest import IPC, NAMES, PIXELS, Export, exporter
from vlcp_ray.config import Job
from vlcp_ray.exports.dd_ranking import CIFAR, IMAGENET, write
from vlcp_ray.images import encode_png
from vlcp_ray.scoring.given import as_rows
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.artifact import Artifact, Store


def set_of(folder: Path, sizes: list[int], counts: tuple[int, int] = (2, 2)) -> Artifact:
    """A set of two classes, whose images have these sides in turn."""
    artifact = Artifact(Store.at(str(folder)).filesystem, str(folder / "set"))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    rows = [
        (f"{number}", label, encode_png(np.full((sizes[number % len(sizes)],) * 2 + (3,), 51 * number, np.uint8)))
        for number, label in enumerate(labels)
    ]
    artifact.write_table("synthetic/0.parquet", as_rows(rows[::-1], ["a", "b"]))
    return artifact


@pytest.mark.parametrize(("side", "normalisation"), [(32, CIFAR), (64, IMAGENET)])
def test_write_normalises_as_dd_ranking_does_and_sorts_by_class(
    side: int, normalisation: tuple[tuple[float, ...], tuple[float, ...]], tmp_path: Path
) -> None:
    """Its `get_dataset` uses CIFAR-10's mean and deviation for both CIFARs, else ImageNet's, on values in 0 to 1."""
    made = set_of(tmp_path, [side])
    assert write(made, made) == ["0", "1", "2", "3"]
    images, labels = (torch.load(f"{made.path}/{name}.pt", weights_only=True) for name in ("images", "labels"))
    assert (images.shape, images.dtype) == ((4, 3, side, side), torch.float32)
    assert labels.tolist() == [0, 0, 1, 1]  # as its hard labels, ipc times each class
    mean, std = (torch.tensor(values) for values in normalisation)
    assert torch.allclose(images[:, :, 0, 0], (torch.arange(4)[:, None] * 0.2 - mean) / std)


def test_write_refuses_what_a_tensor_cannot_hold(tmp_path: Path) -> None:
    made = set_of(tmp_path, [8, 16])
    with pytest.raises(ConfigError, match="the images have several sizes"):
        write(made, made)
    made = set_of(tmp_path, [8], (1, 2))
    with pytest.raises(ConfigError, match="the classes have 1 to 2 images"):
        write(made, made)


def test_export_for_dd_ranking_has_soft_labels_and_says_which_set_it_is(job_with_teacher: Job, tmp_path: Path) -> None:
    export: Export = exporter(job_with_teacher, tmp_path)
    to, line = export("dd-ranking")
    assert line.startswith("12 images of 3 classes")
    images, labels = (torch.load(to / f"{name}.pt", weights_only=True) for name in ("images", "labels"))
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    pixels = torch.from_numpy(PIXELS).flatten(0, 1).permute(0, 3, 1, 2)
    assert ((images * std + mean) * 255).round().equal(pixels.float())
    stored = parquet.read_table(export("parquet")[0] / "data").column("soft_label").to_pylist()
    for temperature in (1, 20):  # softmax(logits / T) of its losses, of the logarithms as of the teacher's own outputs
        powers = torch.tensor(stored).double() ** (1 / temperature)
        wanted = powers / powers.sum(1, keepdim=True)
        assert torch.allclose((labels.double() / temperature).softmax(1), wanted, atol=1e-6)
    found = json.loads((to / "SET").read_text())
    assert (found["method"], found["seed"], found["ipc"], found["classes"]) == ("vlcp", 0, IPC, NAMES)
    assert found["image_ids"][:2] == ["synthetic-0000-0000", "synthetic-0000-0001"]
    assert found["teacher"]
    assert "normalised by the mean" in (to / "README.md").read_text()
