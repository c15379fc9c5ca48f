"""Tests of reading a checkpoint for the job's classes."""

from pathlib import Path

import pytest
import torch

from vlcp_ray.sources.classes import expand, load_glossary
from vlcp_ray.stages.teach.run import _read_checkpoint


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
