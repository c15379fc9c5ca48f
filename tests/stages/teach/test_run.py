"""Tests of training the teacher on IMAGES, and of reading a checkpoint for the job's classes."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load

from vlcp_ray.config import Teach
from vlcp_ray.demo import digits
from vlcp_ray.protocols.labelled_images import load_split
from vlcp_ray.schemas import IMAGES, conform
from vlcp_ray.sources.classes import expand, load_glossary
from vlcp_ray.stages.teach import WEIGHTS
from vlcp_ray.stages.teach.run import _read_checkpoint, _train_or_load, _train_or_load_on_all_cores
from vlcp_ray.stages.teach.train import train_teacher
from vlcp_ray.store.artifact import Artifact, Step, Store


def test_read_checkpoint_of_imagenet_selects_the_outputs_of_the_classes(tmp_path: Path) -> None:
    known = load_glossary("")
    names = [known.names[key] for key in sorted(expand(["imagenet1k"], known))]
    path = tmp_path / "resnet.pth"
    torch.save({"fc.weight": torch.arange(1000.0)[:, None], "fc.bias": torch.arange(1000.0)}, path)
    assert len(names) == 1000
    state = _read_checkpoint(str(path), [names[217], names[0], names[701]])
    assert state["fc.weight"].tolist() == [[217.0], [0.0], [701.0]]
    assert state["fc.bias"].tolist() == [217.0, 0.0, 701.0]


def test_read_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"fc.weight": torch.zeros(1000, 1)}, path)
    with pytest.raises(ValueError, match="has 1000 outputs and no class list, for 2 classes"):
        _read_checkpoint(str(path), ["zero", "one"])


@pytest.fixture
def images(tmp_path: Path) -> Artifact:
    """IMAGES of 60 train and 20 val digits."""
    artifact = Store.at(str(tmp_path)).artifact(Step("ingest", 1, {}))
    rows = [dict(row) for split, count in (("train", 60), ("val", 20)) for row in list(digits.rows(split))[:count]]
    artifact.write_table("images/0.parquet", conform(pa.Table.from_pylist(rows), IMAGES))
    return artifact


SETTINGS = Teach(network="ConvNet-3", width=8, input_size=16, epochs=4, batch_size=30, validations=2, flip=False)


def test_train_or_load_writes_the_weights_of_its_metrics(images: Artifact, tmp_path: Path) -> None:
    """The weights are those of the training; read as a checkpoint they have the same accuracy, measured once."""
    threads = torch.get_num_threads()
    target = Store.at(str(tmp_path)).artifact(Step("teach", 1, {}))
    metrics, peaks = _train_or_load_on_all_cores(images, target, SETTINGS, digits.CLASS_NAMES, "cpu")
    assert torch.get_num_threads() == threads
    assert peaks.memory > 0
    train, val = (load_split(images, split, 16, 16) for split in ("train", "val"))
    assert (len(train.labels), len(val.labels)) == (60, 20)
    trained = train_teacher(train, val, digits.CLASS_NAMES, SETTINGS, 0, "cpu")
    state = load(target.read_bytes(WEIGHTS) or b"")
    assert state.keys() == trained.state.keys()
    assert len(metrics["curve"]) == 2
    assert metrics["curve"][-1] == metrics["top1"] <= metrics["top5"]
    torch.save(state, tmp_path / "teacher.pth")
    again = Store.at(str(tmp_path)).artifact(Step("teach", 2, {}))
    loaded = SETTINGS.model_copy(update={"checkpoint": str(tmp_path / "teacher.pth")})
    found = _train_or_load(images, again, loaded, digits.CLASS_NAMES, "cpu")
    assert found == {"top1": metrics["top1"], "top5": metrics["top5"], "curve": [metrics["top1"]]}
    assert again.read_bytes(WEIGHTS) == target.read_bytes(WEIGHTS)
