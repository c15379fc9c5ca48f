"""Tests of the shipped jobs: the values of the paper's appendix, and a plan without data, hub or GPU."""

import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vlcp_ray.cli import main
from vlcp_ray.config import Job, load_job
from vlcp_ray.sources.classes import expand, load_glossary

JOBS = Path(__file__).parents[1] / "jobs"


class Appendix(NamedTuple):
    """Tables 1 and 4-7: what differs from set to set."""

    ipc: tuple[int, ...]
    alpha: float
    beta: float
    image_size: int
    train_resolution: int
    classes: int


PAPER = {
    "imagenette": Appendix((10, 20, 50), 0.01, 0.7, 256, 512, 10),
    "imagewoof": Appendix((10, 20, 50, 70, 100), 0.0, 0.7, 256, 512, 10),
    "imageidc": Appendix((10, 20, 50), 0.1, 0.7, 256, 512, 10),
    "imagenet100": Appendix((10, 20), 0.1, 0.7, 256, 512, 100),
    "imagenet1k": Appendix((10, 50), 0.0, 0.7, 224, 512, 1000),
    "cifar10": Appendix((10, 50), 0.0, 0.8, 32, 32, 10),
    "cifar100": Appendix((10, 50), 0.0, 0.2, 32, 32, 100),
    "tiny-imagenet": Appendix((10, 50), 0.0, 0.7, 64, 64, 200),
}
PROMPT = (
    "Describe the physical appearance of the {class_name} in the image. Include details about its shape, posture, "
    "color, and any distinct features."
)
#: The same for all sets.
SHARED: dict[str, Any] = {
    "base_model": "benjamin-paine/stable-diffusion-v1-5",
    "seeds": (0, 1, 2),
    "caption.model": "llava-hf/llava-1.5-7b-hf",
    "caption.prompt": PROMPT,
    "caption.temperature": 0.2,
    "caption.max_tokens": 1024,
    "encode.resolution": 512,
    "finetune.epochs": 8,
    "finetune.batch_size": 32,
    "finetune.learning_rate": 1e-5,
    "finetune.weight_decay": 0.01,
    "finetune.max_grad_norm": 1.0,
    "finetune.ema_decay": 0.9999,
    "finetune.random_flip": True,
    "finetune.mixed_precision": "fp16",
    "finetune.validation_epochs": 2,
    "prototype.n_neighbors": 10,
    "prototype.n_init": 10,
    "prototype.n_words": 30,
    "generate.strength": 0.7,
    "generate.guidance_scale": 10.0,
    "generate.num_inference_steps": 50,
    "generate.negative_prompt": "cartoon, anime, painting",
}


def setting(job: Job, name: str) -> Any:
    value: Any = job
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", PAPER)
def test_job_of_the_paper_has_the_values_of_the_appendix(name: str) -> None:
    job, paper = load_job(JOBS / f"{name}.toml"), PAPER[name]
    assert {key: setting(job, key) for key in SHARED} == SHARED
    assert (job.ipc, job.prototype.contamination, job.prototype.max_df) == (paper.ipc, paper.alpha, paper.beta)
    assert (job.generate.image_size, job.encode.train_resolution) == (paper.image_size, paper.train_resolution)
    assert job.ingest.expect is not None
    assert job.ingest.expect.classes == paper.classes
    if job.ingest.classes:
        assert len(expand(job.ingest.classes, load_glossary(""))) == paper.classes


def test_jobs_cover_every_set_of_the_paper() -> None:
    others = {"digits", "digits-seeds", "digits-tune", "digits-compare", "cifar10-cpu", "cifar10-compare"}
    others |= {"cifar10-cross-cpu", "cross-architecture", "digits-lora"}
    assert {file.stem for file in JOBS.glob("*.toml")} == set(PAPER) | others


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.toml")), ids=lambda file: file.stem)
def test_plan_of_every_job_needs_no_data(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("plan reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    assert main(["plan", str(file), "--root", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{need}" in out for need in ("images  ", "distilled  ", "disk  "))
    assert ("\nGPU memory  " in out) is (file.stem != "cifar10-cpu")
    assert f"vlcp-ray run {file.stem}" in file.read_text(encoding="utf-8").partition("\n\n")[0]


def test_graph_shares_models_between_sizes(tmp_path: Path) -> None:
    from vlcp_ray.pipeline import graph

    steps = graph(load_job(JOBS / "imagenette.toml"))
    count = {stage: len({s.fingerprint for s in steps if s.stage == stage}) for stage in {s.stage for s in steps}}
    # Three seeds of the UNet, and three of minimax's DiT.
    assert (count["ingest"], count["pair"], count["finetune"], count["prototype"]) == (1, 1, 6, 9)
