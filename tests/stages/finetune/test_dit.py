"""Tests of the training of a DiT: the two terms against plain loops, ranks, micro-batches, and its checkpoints."""

import math
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from vlcp_ray import schemas
from vlcp_ray.methods.minimax import Minimax
from vlcp_ray.scale import FinetunePool
from vlcp_ray.stages.finetune.batches import RankBatch, Schedule
from vlcp_ray.stages.finetune.dit import DitTrainer, Memories
from vlcp_ray.stages.finetune.moments import MomentRows
from vlcp_ray.stages.finetune.training import EpochMetrics, train

N = 24
Build = Callable[..., DitTrainer]


def make_rows(views: int = 2) -> MomentRows:
    """Rows of three classes, 0, 1 and 4."""
    moments = np.random.default_rng(0).normal(size=(N, views, 8, 4, 4)).astype(np.float16)
    moments[:, :, 4:] = -4.0
    return MomentRows([f"img-{row:03d}" for row in range(N)], np.array([0, 1, 4] * (N // 3)), moments)


@pytest.fixture
def build(tiny_dit: str) -> Build:
    def make(batch: int = 8, pool: dict[str, Any] | None = None, **arguments: Any) -> DitTrainer:
        names = {name: arguments.pop(name) for name in list(arguments) if name in Minimax.model_fields}
        settings = Minimax(model=tiny_dit, **{"epochs": 2, "batch_size": 8, "ema_decay": 0.9} | names)
        scale = FinetunePool(batch_size=batch, **{"gradient_checkpointing": False} | (pool or {}))
        return DitTrainer(settings, 0, {0: 0, 1: 1, 4: 2}, scale, **arguments)

    return make


def inputs_of(trainer: DitTrainer, batch: RankBatch, rows: MomentRows | None = None) -> Any:
    return trainer.prepare((rows or make_rows()).reader()(batch.positions), batch)


def gradient(trainer: DitTrainer) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in trainer.trained.values()])


def weights(trainer: DitTrainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in trainer.trained.values()])


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    norms = math.sqrt(sum(x * x for x, _ in pairs)) * math.sqrt(sum(y * y for _, y in pairs))
    return sum(x * y for x, y in pairs) / norms


def plain_terms(
    predicted: torch.Tensor, labels: Sequence[int], real: dict[int, list[torch.Tensor]], own: dict[int, Any]
) -> float:
    """The two terms of a batch, pair by pair, with the released weights."""
    total, classes = 0.0, set(labels)
    for label in classes:
        if not real.get(label):
            continue
        rows = [predicted[row] for row, other in enumerate(labels) if other == label]
        lowest = min(similarity(row, other) for row in rows for other in real[label])
        highest = max(similarity(row, other) for row in rows for other in own[label])
        total += (0.002 * (1 - lowest) + 0.008 * highest) / len(classes)
    return total


def test_targets_are_the_terms_of_plain_loops_over_the_newest_latents() -> None:
    memories, real, own = Memories(3), {}, {}
    generator = torch.Generator().manual_seed(0)
    for labels in ([0, 1, 0, 5], [1, 1, 0, 0], [5, 1, 1, 1], [0, 1, 5, 2]):
        predicted, latents = (torch.randn(4, 4, 2, 2, generator=generator) for _ in range(2))
        targets = memories.targets(predicted, labels, 0.002, 0.008)
        found = sum(t.constant + t.weight * similarity(predicted[t.row], t.other) for t in targets)
        assert found == pytest.approx(plain_terms(predicted, labels, real, own), abs=1e-7)
        assert all(labels[target.row] in memories.real for target in targets)
        memories.add(latents, predicted, labels)
        for row, label in enumerate(labels):
            real[label] = [*real.get(label, []), latents[row]][-3:]
            own[label] = [*own.get(label, []), predicted[row]][-3:]
        assert {label: len(values) for label, values in memories.real.items()} == {k: len(v) for k, v in real.items()}
    assert len(targets) == 2 * 3  # class 2 has no memory yet


def test_loss_of_a_batch_is_that_of_the_diffusion_and_the_terms(build: Build) -> None:
    trainer, schedule = build(), Schedule(N, 2, 8, 0)
    trainer.step(inputs_of(trainer, schedule.rank_batch(0)))
    inputs = inputs_of(trainer, schedule.rank_batch(1))
    real, own = ({k: list(v) for k, v in m.items()} for m in (trainer.memories.real, trainer.memories.predicted))
    noisy = trainer.diffusion.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
    with torch.no_grad():
        output = trainer.dit(noisy, inputs.timesteps, inputs.classes).sample
        losses = trainer.diffusion.losses(output, inputs.latents, noisy, inputs.noise, inputs.timesteps)
    clean = trainer.diffusion.predict_clean(noisy, output[:, :4], inputs.timesteps)
    terms = plain_terms(clean, inputs.labels.tolist(), real, own)
    assert terms > 0
    assert float(trainer.accumulate(inputs)) == pytest.approx(float(losses.mean()) + terms, abs=1e-6)


@pytest.mark.parametrize("micro", [3, 1])
def test_micro_batches_give_the_gradient_of_the_whole_batch(build: Build, micro: int) -> None:
    schedule = Schedule(N, 2, 8, 0)
    whole, parts = build(), build(batch=micro)
    for step in (0, 1):
        losses = [float(t.accumulate(inputs_of(t, schedule.rank_batch(step)))) for t in (whole, parts)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        torch.testing.assert_close(gradient(whole), gradient(parts), rtol=1e-3, atol=1e-5)
        for trainer in (whole, parts):
            trainer._clear_gradients()


def test_gradient_checkpointing_gives_the_same_gradient(build: Build) -> None:
    trainers = [build(pool={"gradient_checkpointing": flag}) for flag in (True, False)]
    for trainer in trainers:
        trainer.accumulate(inputs_of(trainer, Schedule(N, 1, 8, 0).rank_batch(0)))
    torch.testing.assert_close(gradient(trainers[0]), gradient(trainers[1]), rtol=1e-3, atol=1e-5)


def test_only_difffits_weights_change_and_the_average_has_a_constant_decay(build: Build) -> None:
    trainer, schedule = build(), Schedule(N, 2, 8, 0)
    before = {name: weight.clone() for name, weight in trainer.dit.named_parameters()}
    average = [value.clone() for value in trainer.ema.weights]
    trainer.step(inputs_of(trainer, schedule.rank_batch(0)))
    changed = {name for name, weight in trainer.dit.named_parameters() if not torch.equal(weight, before[name])}
    assert changed <= set(trainer.trained)
    assert len(changed) > len(trainer.trained) // 2
    for value, start, weight in zip(trainer.ema.weights, average, trainer.trained.values(), strict=True):
        torch.testing.assert_close(value, 0.9 * start + 0.1 * weight.detach(), rtol=0, atol=1e-6)


def test_inputs_of_a_row_depend_on_its_id_and_epoch_only(build: Build) -> None:
    trainer, rows = build(class_dropout=0.5), make_rows()
    batch = RankBatch(np.arange(N), np.zeros(N, np.int64), 1 / N, N)
    whole = inputs_of(trainer, batch, rows)
    one = inputs_of(trainer, RankBatch(np.array([5]), np.zeros(1, np.int64), 1.0, 1), rows)
    for name in ("latents", "noise", "timesteps", "classes"):
        assert torch.equal(getattr(whole, name)[5], getattr(one, name)[0])
    nameless = whole.classes == 1000
    assert 0 < int(nameless.sum()) < N
    assert whole.classes[~nameless].tolist() == [
        {0: 0, 1: 1, 4: 2}[label] for label in whole.labels[~nameless].tolist()
    ]


def run(trainer: DitTrainer, epochs: int, n_rows: int = N, **arguments: Any) -> list[EpochMetrics]:
    reports: list[EpochMetrics] = []
    train(trainer, Schedule(n_rows, epochs, 8, 0), make_rows().reader(), reports.append, **arguments)
    return reports


def test_training_lowers_the_loss_from_epoch_to_epoch(build: Build) -> None:
    losses = [metrics.loss for metrics in run(build(learning_rate=0.01), 6)]
    assert losses[-1] < 0.9 * losses[0]
    assert losses[1] < losses[0]


def test_resumed_from_a_checkpoint_it_equals_the_undisturbed_training(build: Build, tmp_path: Path) -> None:
    """With its memories: without them the terms would be others."""
    undisturbed, saved = build(), []

    def save(totals: Sequence[float]) -> None:
        if not saved:
            undisturbed.save(tmp_path, totals)
            saved.append(undisturbed.steps_done)

    reports = run(undisturbed, 3, save=save, seconds=0)
    assert saved == [3]
    resumed = build()
    resumed.load(tmp_path)
    assert resumed.memories.real.keys() == {0, 1, 4}
    again = run(resumed, 3)
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert [metrics.loss for metrics in again] == [metrics.loss for metrics in reports[1:]]
    assert all(map(torch.equal, resumed.ema.weights, undisturbed.ema.weights))


def test_export_is_the_average_of_the_trained_weights(build: Build, tmp_path: Path) -> None:
    trainer = build()
    run(trainer, 1)
    trainer.export(tmp_path)
    exported = load_file(tmp_path / "trained.safetensors")
    assert list(exported) == sorted(trainer.trained)
    assert all(torch.equal(exported[n], v) for n, v in zip(trainer.trained, trainer.ema.weights, strict=True))


def test_rows_are_read_by_position_with_their_labels() -> None:
    rows = make_rows(views=1)
    joined = MomentRows.concatenate(
        [MomentRows(rows.image_ids[part], rows.labels[part], rows.moments[part]) for part in (slice(9, 24), slice(9))]
    )
    assert list(joined.image_ids) == list(rows.image_ids)
    table = joined.reader()(np.array([5, 2, 20]))
    assert isinstance(table, pa.Table)
    assert table["image_id"].to_pylist() == ["img-005", "img-002", "img-020"]
    assert table["label"].to_pylist() == [4, 4, 4]
    assert np.array_equal(schemas.tensors(table["train_moments"]), rows.moments[[5, 2, 20]])


def train_as_rank(build: Build, rank: int, folder: Path, rows: int) -> None:
    """Train as one of two ranks under DDP, and write the trained weights, the memories and the loss."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    trainer = build(rank=rank, world_size=2, wrap=lambda network: DistributedDataParallel(network))
    (report,) = run(trainer, 1, rows)
    saved = {name: weight.detach() for name, weight in trainer.trained.items()} | trainer.state()
    torch.save(saved | {"loss": torch.tensor(report.loss)}, folder / f"rank-{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("rows", [N, 17])  # whole batches, and a last one in which a rank has no row
def test_two_ranks_train_the_same_weights_and_memories_as_one(build: Build, tmp_path: Path, rows: int) -> None:
    processes = multiprocessing.get_context("fork")
    ranks = [processes.Process(target=train_as_rank, args=(build, rank, tmp_path, rows)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    alone = build()
    (report,) = run(alone, 1, rows)
    for process in ranks:
        process.join(500)
        assert process.exitcode == 0
    expected = {name: weight.detach() for name, weight in alone.trained.items()} | alone.state()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank-{rank}.pt")
        assert float(found.pop("loss")) == pytest.approx(report.loss, abs=1e-5)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-4)
