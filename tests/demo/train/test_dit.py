"""Tests of the tiny DiT's training: what it writes is what the package has."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlcp_ray.demo.train import __main__ as training
from vlcp_ray.demo.train import dit, glyphs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_dit_is_written_with_the_settings_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(glyphs, "COUNT", 64)
    monkeypatch.setattr(dit, "train", partial(dit.train, steps=1))
    training.train_dit(tmp_path, training.DEMO / "stable_diffusion")
    packaged = training.DEMO / "dit"
    files = {path.relative_to(packaged) for path in packaged.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == files
    for name in files:
        if name.suffix == ".json":
            assert (tmp_path / name).read_text() == (packaged / name).read_text(), name
    weights = "diffusion_pytorch_model.safetensors"
    own, trained = (load_file(folder / "vae" / weights) for folder in (packaged, tmp_path))
    assert all(torch.equal(trained[name], own[name]) for name in own)
    own, trained = (load_file(folder / "transformer" / weights) for folder in (packaged, tmp_path))
    assert {name: value.shape for name, value in trained.items()} == {name: value.shape for name, value in own.items()}
