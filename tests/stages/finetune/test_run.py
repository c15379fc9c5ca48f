"""Tests of the arguments of the ranks of fine-tuning, of their metrics, and of seeds that are tuned side by side."""

import json
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
import ray.train.torch

from tests.engine.clock import set_clock
from tests.small_job import JOB
from tests.stages.report.small_report import png
from vlcp_ray.config import load_job
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.ranks import scaling_config
from vlcp_ray.monitoring.memory import Peaks
from vlcp_ray.monitoring.tensorboard import Record
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import FinetunePool, Pool, Scale
from vlcp_ray.stages.finetune import run as run_module
from vlcp_ray.stages.finetune.batches import Schedule
from vlcp_ray.stages.finetune.run import (
    RankConfig,
    _call_at_once,
    _complete,
    _configure_ranks,
    _fit,
    _read_json,
    _record_curves,
    _show_progress,
    _write_metrics,
)
from vlcp_ray.stages.finetune.training import EpochMetrics
from vlcp_ray.store.artifact import Step, Store

pytestmark = pytest.mark.filterwarnings("default")
with_ray = pytest.mark.usefixtures("ray_session")


METRICS = EpochMetrics(
    step=5, epoch=2, images=40, loss=0.25, images_per_second=3.0, learning_rate=1e-4, gradient_norm=0.5
)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A job with PAIRS of 20 rows in four classes, and scale for two ranks."""
    job = load_job(JOB, ["finetune.epochs=4", "finetune.batch_size=8", "encode.train_resolution=64"])
    context = Context(job, Scale(finetune=Pool(batch_size=3)), Store.at(str(tmp_path)))
    for step in graph(job):
        if step.stage in ("ingest", "pair"):
            names = [f"class {label}" for label in range(4)]
            context.complete(step, rows_in=20, rows=20, seconds=1.0, class_names=names)
    return context


def finetune_step(context: Context) -> Step:
    return next(step for step in graph(context.job) if step.stage == "finetune")


def config_of(context: Context) -> RankConfig:
    return _configure_ranks(context, finetune_step(context), None, context.scale.finetune)


def test_configure_ranks_takes_job_scale_and_inputs(context: Context) -> None:
    pool = FinetunePool(batch_size=5)
    config, job = _configure_ranks(context, finetune_step(context), "rows", pool), context.job
    assert config == RankConfig(
        trainer="vlcp_ray.stages.finetune.trainer:Trainer",
        arguments={
            "settings": job.finetune,
            "base_model": job.base_model,
            "seed": 0,
            "resolution": 64,
            "class_names": ["class 0", "class 1", "class 2", "class 3"],
        },
        pool=pool,
        schedule=Schedule(20, 4, 8, 0),
        rows="rows",
        root=context.artifact(finetune_step(context)),
    )
    assert config.artifact == config.root
    assert config.schedule.steps == 10


@pytest.mark.parametrize("at_once", [1, 3])
def test_complete_has_the_share_and_the_ranks_of_trainings_at_the_same_time(
    context: Context, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = finetune_step(context)
    config = replace(config_of(context), pool=FinetunePool(num_workers=2, min_workers=1, num_gpus=1, batch_size=5))
    config.artifact.write_bytes("checkpoints/state", b"x")
    config.artifact.write_bytes("memory/rank-0000.json", json.dumps([Peaks(1, 2, 3), "{}"]).encode())
    clock = set_clock(monkeypatch, run_module.__name__)
    _complete(context, step, [config], 20, clock.now - 60, at_once, at_once)
    manifest = context.manifest(step)
    assert manifest["seconds"] == 60 / at_once
    recorded = manifest["scale"]["finetune"]
    assert (recorded["num_workers"], recorded["min_workers"], recorded["num_gpus"]) == (2 * at_once, at_once, 1)
    used = manifest["seconds"] * recorded["num_workers"]
    assert used == 60 * config.pool.num_workers  # the seconds of its own ranks
    assert list(manifest["files"]) == []


@dataclass
class Validating:
    """Makes some validation images of one grey in every second epoch."""

    count: int = 0

    def validate(self, epoch: int) -> list[bytes]:
        return [] if epoch % 2 else [png(7 + number) for number in range(self.count)]


def test_write_metrics_has_the_images_of_the_trainer(context: Context) -> None:
    config = config_of(context)
    for epoch in (1, 2, 3, 4):
        _write_metrics(config, cast(Any, Validating(3)), replace(METRICS, epoch=epoch, loss=1 / epoch))
    names = [file.name for file in config.artifact.files("validation", ".png")]
    assert names == [f"epoch-{epoch:04d}-{number:02d}.png" for epoch in (2, 4) for number in range(3)]
    assert config.artifact.read_bytes("validation/epoch-0002-01.png") == png(8)
    written = _read_json(config.artifact, "progress")
    assert written == [asdict(replace(METRICS, epoch=epoch, loss=1 / epoch)) for epoch in (1, 2, 3, 4)]
    assert _read_json(config.artifact, "progress", 3) == written[3:]
    assert _read_json(config.artifact, "memory") == []


def test_record_curves_adds_metrics_and_images_of_an_epoch_once(context: Context) -> None:
    step, config = finetune_step(context), config_of(context)
    added: list[tuple[str, Record]] = []
    records = cast(
        Any, SimpleNamespace(names=lambda series: {r.name for _, r in added}, add=lambda *a: added.append(a))
    )
    context.__dict__["records"] = records
    for epoch in (1, 2):
        _write_metrics(config, cast(Any, Validating(2)), replace(METRICS, epoch=epoch, step=5 * epoch))
    for metrics in [*_read_json(config.artifact, "progress"), asdict(METRICS)]:
        _record_curves(context, step, metrics)
    curves = {"loss": 0.25, "images_per_second": 3.0, "learning_rate": 1e-4, "gradient_norm": 0.5}
    series = f"finetune/seed-0-{step.fingerprint}"
    assert added == [
        (series, Record("epoch-0001", [(5, curves)], {})),
        (series, Record("epoch-0002", [(10, curves)], {"validation/00": png(7), "validation/01": png(8)})),
    ]


def test_show_progress_counts_the_images_of_the_ranks(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics of an earlier run are the start; those written meanwhile are read by name, also after the end."""
    monkeypatch.setattr(run_module, "_POLL_INTERVAL", 0.01)
    step, config = finetune_step(context), config_of(context)
    lines: list[str] = []
    monkeypatch.setattr(context.view, "log_line", lambda title, text: lines.append(text))
    updates: list[tuple[int, str]] = []
    monkeypatch.setattr(context.view, "on_update", lambda progress: updates.append((progress.count, progress.note)))

    def write(epoch: int, images: int) -> None:
        _write_metrics(config, cast(Any, Validating()), replace(METRICS, epoch=epoch, images=images, loss=1 / epoch))

    write(1, 24)
    with _show_progress(context, [step], [config]):
        write(2, 40)
        deadline = time.monotonic() + 20
        while (40, "epoch 2, loss 0.5000") not in updates and time.monotonic() < deadline:
            time.sleep(0.01)
        assert context.view.snapshot() is not None
        write(3, 64)
    assert lines[0] == "resumes after 24 of 80 images"
    assert lines[-1].startswith("     64 images")
    counts = [count for count, _ in updates]
    assert counts == sorted(counts)
    assert set(counts) == {24, 40, 64}
    assert updates[-1] == (64, "epoch 3, loss 0.3333")
    assert context.records.names(f"finetune/seed-0-{step.fingerprint}") == {"epoch-0001", "epoch-0002", "epoch-0003"}


def test_show_progress_ends_at_an_error(context: Context) -> None:
    with pytest.raises(RuntimeError), _show_progress(context, [finetune_step(context)], [config_of(context)]):
        raise RuntimeError
    assert context.view.snapshot() is None


def test_fit_starts_the_ranks_of_the_pool(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []

    def start(rank: object, **arguments: Any) -> Any:
        started.append(arguments)
        return SimpleNamespace(fit=lambda: None)

    monkeypatch.setattr("vlcp_ray.stages.finetune.run.TorchTrainer", start)
    config, pool = config_of(context), FinetunePool(num_workers=4, min_workers=2, num_gpus=0.5)
    _fit(config, pool)
    run_config = started[0]["run_config"]
    assert started[0]["scaling_config"] == scaling_config(pool)
    assert (run_config.name, run_config.storage_path) == ("checkpoints", config.artifact.path)
    assert run_config.checkpoint_config.num_to_keep == 1
    assert run_config.failure_config.max_failures == 8
    assert started[0]["train_loop_config"] == {"config": config}


def test_fit_raises_the_error_of_the_store(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Exception] = [OSError("the store failed"), ValueError("x")]

    def fit() -> None:
        raise ray.train.ControllerError(failures[0])

    monkeypatch.setattr("vlcp_ray.stages.finetune.run.TorchTrainer", lambda *a, **k: SimpleNamespace(fit=fit))
    with pytest.raises(OSError, match="the store failed"):
        _fit(config_of(context), FinetunePool())
    del failures[0]
    with pytest.raises(ray.train.ControllerError):
        _fit(config_of(context), FinetunePool())


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_call_at_once_yields_every_number_and_runs_so_many_together(at_once: int) -> None:
    together = threading.Barrier(at_once)

    def call(number: int) -> None:
        if number < at_once:
            together.wait(20)  # would fail if fewer ran at the same time

    assert sorted(_call_at_once(call, 5, at_once)) == [0, 1, 2, 3, 4]


def test_call_at_once_after_an_error_waits_for_no_other_call_and_starts_none() -> None:
    started, ends = [], threading.Event()

    def call(number: int) -> None:
        started.append(number)
        if number == 1:
            raise ValueError("seed 1: refused")
        ends.wait(60)

    start = time.monotonic()
    with pytest.raises(ValueError, match="seed 1: refused"):
        list(_call_at_once(call, 5, 2))
    assert time.monotonic() - start < 30
    ends.set()
    assert sorted(started) == [0, 1]
