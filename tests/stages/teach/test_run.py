"""Tests of training the teacher on IMAGES, and of reading a checkpoint for the job's classes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load
from torchvision.models import ResNet18_Weights

from tests.engine.clock import set_clock
from vlcp_ray.config import Teach, load_job
from vlcp_ray.demo import digits
from vlcp_ray.engine.context import Context
from vlcp_ray.models.teacher import build_teacher
from vlcp_ray.monitoring.memory import Peaks
from vlcp_ray.pipeline import graph
from vlcp_ray.protocols.labelled_images import load_split
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import IMAGES, conform
from vlcp_ray.sources.classes import expand, load_glossary
from vlcp_ray.stages.teach import STAGE, WEIGHTS, hashed_settings
from vlcp_ray.stages.teach import run as run_module
from vlcp_ray.stages.teach.run import _read_checkpoint, _train_or_load, _train_or_load_on_all_cores
from vlcp_ray.stages.teach.train import train_teacher
from vlcp_ray.store.artifact import Artifact, Step, Store

JOBS = Path(__file__).parents[3] / "jobs"


def test_read_checkpoint_of_imagenet_selects_the_outputs_of_the_classes(tmp_path: Path) -> None:
    known = load_glossary("")
    names = [known.names[key] for key in sorted(expand(["imagenet1k"], known))]
    path = tmp_path / "resnet.pth"
    torch.save({"fc.weight": torch.arange(1000.0)[:, None], "fc.bias": torch.arange(1000.0)}, path)
    assert len(names) == 1000
    state = _read_checkpoint(Teach(checkpoint=str(path)), [names[217], names[0], names[701]])
    assert state["fc.weight"].tolist() == [[217.0], [0.0], [701.0]]
    assert state["fc.bias"].tolist() == [217.0, 0.0, 701.0]


def test_read_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"fc.weight": torch.zeros(1000, 1)}, path)
    with pytest.raises(ValueError, match="has 1000 outputs and no class list, for 2 classes"):
        _read_checkpoint(Teach(checkpoint=str(path)), ["zero", "one"])


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of torchvision's weights of ResNet-18 in torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name


def test_read_checkpoint_of_torchvision_is_that_of_its_network(published: Path) -> None:
    known = load_glossary("")
    names = [known.names[key] for key in sorted(expand(["imagenet1k"], known))]
    torch.save({"fc.weight": torch.arange(1000.0)[:, None], "fc.bias": torch.arange(1000.0)}, published)
    state = _read_checkpoint(Teach(checkpoint="torchvision"), [names[5], names[3]])
    assert state["fc.weight"].tolist() == [[5.0], [3.0]]
    assert _read_checkpoint(Teach(checkpoint="torchvision"), names[::-1])["fc.bias"].tolist() == list(range(1000))[::-1]
    with pytest.raises(ValueError, match=r"it does not have \['another'\]"):
        _read_checkpoint(Teach(checkpoint="torchvision"), [*names[1:], "another"])


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("attacked"),))


def test_read_checkpoint_of_torchvision_runs_no_code_and_names_a_failed_download(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published.parent)
    torch.save({"fc.weight": torch.zeros(1000, 1), "attack": Attack()}, published)
    with pytest.raises(ValueError, match=r"teach.checkpoint: torchvision's weights ResNet18_.* cannot be loaded \("):
        _read_checkpoint(Teach(checkpoint="torchvision"), ["x"])
    assert not Path("attacked").exists()
    published.unlink()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"cannot be loaded \(.*refused.*\); put the file where the workers reach it"):
        _read_checkpoint(Teach(checkpoint="torchvision"), ["x"])


def test_checkpoint_of_torchvision_is_refused_for_a_network_without_one() -> None:
    with pytest.raises(
        ValueError, match=r"publishes no weights of ConvNet-3, only of ResNet-18, alexnet, .*; choose one of these"
    ):
        Teach(network="ConvNet-3", checkpoint="torchvision")
    job = load_job(JOBS / "imagenet1k.toml", ["teach.checkpoint=torchvision"])
    assert hashed_settings(job.teach)["checkpoint"] == "ResNet18_Weights.IMAGENET1K_V1"


@pytest.fixture
def images(tmp_path: Path) -> Artifact:
    """IMAGES of 60 train and 20 val digits."""
    artifact = Store.at(str(tmp_path)).artifact(Step("ingest", 1, {}))
    rows = [dict(row) for split, count in (("train", 60), ("val", 20)) for row in list(digits.rows(split))[:count]]
    artifact.write_table("images/0.parquet", conform(pa.Table.from_pylist(rows), IMAGES))
    return artifact


SETTINGS = Teach(network="ConvNet-3", width=8, input_size=16, epochs=20, batch_size=30, validations=2, flip=False)


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


def test_train_or_load_of_random_weights_is_refused(images: Artifact, tmp_path: Path) -> None:
    state = build_teacher(SETTINGS, len(digits.CLASS_NAMES), 16, seed=0).state_dict()
    torch.save(state, tmp_path / "teacher.pth")
    loaded = SETTINGS.model_copy(update={"checkpoint": str(tmp_path / "teacher.pth")})
    target = Store.at(str(tmp_path)).artifact(Step("teach", 1, {}))
    with pytest.raises(ValueError, match=r"teach\.checkpoint: top-1 on val is .*guessing among 10 classes; check"):
        _train_or_load(images, target, loaded, digits.CLASS_NAMES, "cpu")
    assert target.read_bytes(WEIGHTS) is None


@pytest.mark.parametrize("gpus", [0.0, 0.5])
def test_run_records_the_one_worker_that_a_gpu_has(
    gpus: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the teacher takes all cores, as the whole pool does."""
    pool = Pool(num_workers=6, num_gpus=gpus)
    job = load_job(JOBS / "digits-compare.toml", [])
    context = Context(job, Scale(evaluate=pool), Store.at(str(tmp_path)))
    step = next(step for step in graph(job) if step.stage == STAGE.name)
    context.complete(step.inputs["images"], rows_in=1, rows=1, seconds=1.0, class_names=["zero", "one"])
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(run_module, "task", lambda *_: SimpleNamespace(remote=lambda *given: called.append(given)))
    monkeypatch.setattr(run_module, "result", lambda _: ({"top1": 0.5}, Peaks()))
    set_clock(monkeypatch, run_module.__name__, 7.0)
    run_module.run(context, [step])
    manifest = context.manifest(step)
    assert (manifest["seconds"], manifest["top1"], manifest["class_names"]) == (7.0, 0.5, ["zero", "one"])
    assert manifest["scale"]["evaluate"]["num_workers"] == (1 if gpus else 6)
    assert manifest["scale"]["evaluate"]["num_gpus"] == gpus
    assert [given[-1] for given in called] == ["cuda" if gpus else "cpu"]
