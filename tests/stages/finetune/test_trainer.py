"""Tests of the training loop of fine-tuning: its recipe, its batches and its checkpoints."""

import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tests.hostile import Payload
from vlcp_ray import images, schemas
from vlcp_ray.models import stable_diffusion
from vlcp_ray.scale import FinetunePool
from vlcp_ray.stages.finetune import Finetune
from vlcp_ray.stages.finetune import training as training_module
from vlcp_ray.stages.finetune.batches import RankBatch, Schedule
from vlcp_ray.stages.finetune.trainer import Trainer
from vlcp_ray.stages.finetune.training import EpochMetrics, train
from vlcp_ray.stages.pair import pairs_schema

SETTINGS = Finetune(epochs=2, batch_size=8, learning_rate=1e-3, mixed_precision="no")
BuildTrainer = Callable[..., Trainer]

TOLERANCE = 1e-6  # gradients of about 0.1 in float32, summed in another order


def make_pairs(n: int = 12, logvar: float = -4.0) -> pa.Table:
    """PAIRS rows whose captions have different lengths."""
    random = np.random.default_rng(0)
    moments = random.normal(size=(n, 2, 8, 4, 4)).astype(np.float16)
    moments[:, :, 4:] = logvar
    columns = {
        "image_id": [f"img-{row:03d}" for row in range(n)],
        "label": [0] * n,
        "class_name": ["zero"] * n,
        "caption": ["a" * (3 * row) for row in range(n)],
        "latent": schemas.tensor_array(moments[:, 0, :4]),
        "train_moments": schemas.tensor_array(moments),
    }
    return pa.table(columns, schema=pairs_schema((4, 4, 4), (8, 4, 4)))


def fetch_from(table: pa.Table) -> Callable[[Any], pa.Table]:
    return lambda positions: table.take(pa.array(positions))


@pytest.fixture
def build_trainer(tiny_stable_diffusion: str) -> BuildTrainer:
    def build(changes: dict[str, Any] | None = None, batch: int = 8, **arguments: Any) -> Trainer:
        changes = changes or {}
        memory = {name: changes[name] for name in changes if name in FinetunePool.model_fields}
        settings = SETTINGS.model_copy(update={name: changes[name] for name in changes if name not in memory})
        pool = FinetunePool(batch_size=batch, **memory)
        return Trainer(settings, tiny_stable_diffusion, seed=0, resolution=32, pool=pool, **arguments)

    return build


def accumulate(trainer: Trainer, table: pa.Table, batch: RankBatch) -> float:
    """Add the gradient of a batch, and return this rank's share of its mean loss."""
    return float(trainer.accumulate(trainer.prepare(fetch_from(table)(batch.positions), batch)))


def step(trainer: Trainer, table: pa.Table, batch: RankBatch) -> float:
    return float(trainer.step(trainer.prepare(fetch_from(table)(batch.positions), batch)))


def gradient(trainer: Trainer) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in trainer.unet.parameters()])


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in trainer.unet.parameters()])


def ema_weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in trainer.ema.weights])


def test_accumulate_in_micro_batches_gives_gradient_of_whole_batch(build_trainer: BuildTrainer) -> None:
    table, batch = make_pairs(), Schedule(12, 2, 8, 0).rank_batch(1)  # with rows of two epochs
    assert set(batch.epochs) == {0, 1}
    whole, micro = build_trainer(), build_trainer(batch=3)
    losses = [accumulate(trainer, table, batch) for trainer in (whole, micro)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(gradient(whole), gradient(micro), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rows", [8, 5, 1])  # even, ragged, and a rank without a row
def test_accumulate_on_two_ranks_gives_gradient_of_one_rank(build_trainer: BuildTrainer, rows: int) -> None:
    table, schedule = make_pairs(), Schedule(rows, 1, 8, 0)
    trainer = build_trainer()
    loss = accumulate(trainer, table, schedule.rank_batch(0))
    ranks, shares = [build_trainer(batch=3, rank=rank, world_size=2) for rank in (0, 1)], []
    for rank in ranks:
        shares.append(accumulate(rank, table, schedule.rank_batch(0, rank.rank, 2)))
    mean = (gradient(ranks[0]) + gradient(ranks[1])) / 2  # what DDP does
    torch.testing.assert_close(mean, gradient(trainer), rtol=0, atol=TOLERANCE)
    assert sum(shares) == pytest.approx(loss, abs=1e-6)


def test_accumulate_with_gradient_checkpointing_gives_same_gradient(build_trainer: BuildTrainer) -> None:
    table, batch = make_pairs(), Schedule(8, 1, 8, 0).rank_batch(0)
    trainers = [build_trainer({"gradient_checkpointing": flag}) for flag in (True, False)]
    for trainer in trainers:
        accumulate(trainer, table, batch)
    torch.testing.assert_close(gradient(trainers[0]), gradient(trainers[1]), rtol=0, atol=TOLERANCE)


def test_sample_inputs_depends_on_image_id_and_epoch_only(build_trainer: BuildTrainer) -> None:
    trainer, table = build_trainer(), make_pairs()
    latents, noise, timesteps = trainer._sample_inputs(table, np.zeros(12, np.int64))
    single_row = trainer._sample_inputs(table.slice(5, 1), np.zeros(1, np.int64))
    next_epoch = trainer._sample_inputs(table, np.ones(12, np.int64))
    for whole, row, other in zip((latents, noise, timesteps), single_row, next_epoch, strict=True):
        assert torch.equal(whole[5], row[0])
        assert not torch.equal(whole, other)
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000


def test_sample_inputs_with_random_flip_takes_both_views(build_trainer: BuildTrainer) -> None:
    table = make_pairs(logvar=-30.0)  # std 3e-7: the latent is the mean x 0.5
    means = torch.from_numpy(schemas.tensors(table["train_moments"])[:, :, :4].astype(np.float32)) * 0.5
    for flag, expected in ((True, {0, 1}), (False, {0})):
        latents, _, _ = build_trainer({"random_flip": flag})._sample_inputs(table, np.zeros(12, np.int64))
        distance = (means - latents[:, None]).abs().amax(dim=(2, 3, 4))
        assert distance.min(dim=1).values.max() < 1e-5
        assert set(distance.argmin(dim=1).tolist()) == expected


def test_step_trains_unet_only_and_ema_follows_formula(build_trainer: BuildTrainer) -> None:
    trainer, table, schedule = build_trainer(), make_pairs(), Schedule(12, 5, 8, 0)
    frozen = [weight.clone() for weight in trainer.text.encoders[0].parameters()]
    expected, start = ema_weights(trainer).clone(), weights(trainer)
    for n in range(4):
        step(trainer, table, schedule.rank_batch(n))
        # diffusers' EMAModel counts from 0: its first step copies the weights
        decay = 0.0 if n == 0 else min(SETTINGS.ema_decay, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights(trainer)
        torch.testing.assert_close(ema_weights(trainer), expected, rtol=0, atol=1e-6)
    assert not torch.equal(weights(trainer), start)
    assert all(torch.equal(old, new) for old, new in zip(frozen, trainer.text.encoders[0].parameters(), strict=True))
    assert not any(weight.requires_grad for weight in trainer.text.encoders[0].parameters())


def test_train_on_small_set_lowers_loss(build_trainer: BuildTrainer) -> None:
    reports: list[EpochMetrics] = []
    trainer = build_trainer({"learning_rate": 3e-3, "gradient_checkpointing": False})
    train(trainer, Schedule(8, 40, 8, 0), fetch_from(make_pairs(8)), reports.append)
    losses = [report.loss for report in reports]
    assert len(losses) == 40
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


def test_train_reports_at_end_of_every_epoch(build_trainer: BuildTrainer) -> None:
    reports: list[EpochMetrics] = []
    train(build_trainer(), Schedule(12, 3, 8, 0), fetch_from(make_pairs()), reports.append)
    assert [(report.step, report.epoch, report.images) for report in reports] == [(2, 1, 16), (3, 2, 24), (5, 3, 36)]
    assert all(report.loss > 0 and report.images_per_second > 0 for report in reports)


def test_train_reports_means_of_the_images_and_steps_of_an_epoch(
    build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[EpochMetrics] = []
    table, schedule, trainer = make_pairs(), Schedule(12, 3, 8, 0), build_trainer()
    clock = iter([0.0, 4.0, 5.0, 5.0, 7.0, 10.0, 10.0, 13.0, 14.0])  # at the start; each report, after it, checkpoint
    monkeypatch.setattr(training_module, "time", SimpleNamespace(perf_counter=clock.__next__))
    train(build_trainer(), schedule, fetch_from(table), reports.append)
    assert [report.images_per_second for report in reports] == [16 / 4, 8 / 2, 12 / 3]
    norms, losses = [], []
    for number in range(schedule.steps):
        losses.append(accumulate(trainer, table, schedule.rank_batch(number)))
        norms.append(gradient(trainer).norm().item())  # before it is clipped
        trainer.update()
    means = [np.mean(norms[:2]), norms[2], np.mean(norms[3:])]  # the epochs end after steps 2, 3 and 5
    assert [report.gradient_norm for report in reports] == pytest.approx(means, rel=1e-4)  # float32
    assert {report.learning_rate for report in reports} == {SETTINGS.learning_rate}
    means = [(losses[0] + losses[1]) / 2, losses[2], (8 * losses[3] + 4 * losses[4]) / 12]
    assert [report.loss for report in reports] == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("memory", [{}, {"average_on": "cpu", "optimizer": "adamw8bit"}], ids=["adamw", "8 bits"])
def test_train_resumed_from_a_checkpoint_equals_uninterrupted_run(
    build_trainer: BuildTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: dict[str, str]
) -> None:
    """The checkpoint is from the middle of the second epoch, whose loss is that of all its images."""
    monkeypatch.setattr(training_module, "_AGREEMENT", 1)
    table, schedule = make_pairs(), Schedule(12, 3, 4, 0)
    whole, first, second = build_trainer(memory), build_trainer(memory), build_trainer(memory)
    uninterrupted: list[EpochMetrics] = []
    train(whole, schedule, fetch_from(table), uninterrupted.append)
    before: list[EpochMetrics] = []

    def save(totals: Sequence[float]) -> None:
        if first.steps_done == 5:
            first.save(tmp_path, totals)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(first, schedule, fetch_from(table), before.append, save, seconds=0)
    second.load(tmp_path)
    assert second.steps_done == 5
    resumed: list[EpochMetrics] = []
    train(second, schedule, fetch_from(table), resumed.append)
    assert torch.equal(weights(second), weights(whole))
    assert torch.equal(ema_weights(second), ema_weights(whole))
    assert [report.loss for report in [*before, *resumed]] == [report.loss for report in uninterrupted]
    norms = [report.gradient_norm for report in [*before, *resumed]]
    assert norms == pytest.approx([report.gradient_norm for report in uninterrupted], rel=1e-12)
    train(second, schedule, fetch_from(table), pytest.fail)  # no step is left: nothing is reported


def test_train_saves_after_the_given_time_and_never_after_the_last_step(
    build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    for seconds, agreement, expected in ((0, 2, [2, 3, 4, 6, 8]), (math.inf, 2, []), (0, 100, [3, 6])):
        monkeypatch.setattr(training_module, "_AGREEMENT", agreement)
        trainer, saved = build_trainer(), []
        train(
            trainer,
            Schedule(12, 3, 4, 0),
            fetch_from(make_pairs()),
            lambda _: None,
            lambda totals, trainer=trainer, saved=saved: saved.append(trainer.steps_done),
            seconds,
        )
        assert saved == expected


@pytest.mark.parametrize("fits", [1, 3])
def test_step_without_memory_for_a_batch_halves_it_and_gives_the_same_gradient(
    build_trainer: BuildTrainer, fits: int
) -> None:
    table, batch = make_pairs(), Schedule(8, 1, 8, 0).rank_batch(0)
    whole, small = build_trainer(), build_trainer(wrap=lambda unet: SmallMemory(unet, fits))
    losses = [accumulate(trainer, table, batch) for trainer in (whole, small)]
    assert small.batch_per_device == {1: 1, 3: 2}[fits]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(gradient(whole), gradient(small), rtol=0, atol=TOLERANCE)


def test_step_without_memory_for_one_image_names_the_settings(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(wrap=lambda unet: SmallMemory(unet, 0))
    with pytest.raises(ValueError, match=r"not even one image fits .* gradient_checkpointing = true"):
        step(trainer, make_pairs(), Schedule(8, 1, 8, 0).rank_batch(0))


class SmallMemory(torch.nn.Module):
    """A UNet on a device whose memory ends in the backward pass of more than some images."""

    def __init__(self, unet: torch.nn.Module, fits: int) -> None:
        super().__init__()
        self.unet, self.fits = unet, fits

    def forward(self, noisy: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        (predicted,) = self.unet(noisy, *inputs, **options)
        if len(noisy) > self.fits:
            predicted.register_hook(self.end)
        return (predicted,)

    def end(self, _: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_export_writes_pipeline_with_ema_weights(build_trainer: BuildTrainer, tmp_path: Path) -> None:
    trainer = build_trainer()
    train(trainer, Schedule(12, 2, 8, 0), fetch_from(make_pairs()), lambda _: None)
    before = weights(trainer)
    trainer.export(tmp_path / "model")
    assert torch.equal(weights(trainer), before)
    loaded = StableDiffusionImg2ImgPipeline.from_pretrained(
        tmp_path / "model", safety_checker=None, low_cpu_mem_usage=False
    )
    exported = torch.cat([weight.flatten() for weight in loaded.unet.parameters()])
    assert torch.equal(exported, ema_weights(trainer))
    assert not torch.equal(exported, before)


def test_validate_generates_images_and_keeps_weights(build_trainer: BuildTrainer) -> None:
    names = ["zero", "one", "two"]
    trainer, other = (build_trainer({"validation_classes": 2}, batch, class_names=names) for batch in (8, 1))
    before = weights(trainer)
    assert trainer.validate(1) == []
    generated = trainer.validate(2)
    assert [images.decode(data).size for data in generated] == [(32, 32)] * 2
    assert torch.equal(weights(trainer), before)
    separate = [np.asarray(images.decode(data)).astype(int) for data in other.validate(2)]
    assert all(np.abs(np.asarray(images.decode(a)) - b).max() <= 1 for a, b in zip(generated, separate, strict=True))


def test_trainer_with_fp16_on_cpu_is_refused(build_trainer: BuildTrainer) -> None:
    with pytest.raises(ValueError, match=r"finetune.mixed_precision: fp16 needs a GPU"):
        build_trainer({"mixed_precision": "fp16"})


def test_train_with_an_infinite_gradient_ends_before_it_reports_or_saves(build_trainer: BuildTrainer) -> None:
    table = pa.concat_tables([make_pairs(), make_pairs(logvar=float("inf"))])
    schedule = Schedule(24, 1, 4, 0)
    bad = min(n for n in range(schedule.steps) if (schedule.rank_batch(n).positions >= 12).any())
    with pytest.raises(ValueError, match=rf"finetune.learning_rate: training diverged at step {bad + 1}; lower it"):
        train(build_trainer(), schedule, fetch_from(table), pytest.fail, pytest.fail, seconds=0)


def test_step_in_bf16_has_loss_close_to_float32(build_trainer: BuildTrainer) -> None:
    table, batch = make_pairs(), Schedule(8, 1, 8, 0).rank_batch(0)
    full, half = (build_trainer({"mixed_precision": precision}) for precision in ("no", "bf16"))
    losses = [step(trainer, table, batch) for trainer in (full, half)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_load_of_a_checkpoint_with_a_payload_is_refused_and_runs_nothing(
    build_trainer: BuildTrainer, tmp_path: Path
) -> None:
    trainer = build_trainer()
    trainer.save(tmp_path, [0.0, 0.0, 0.0])
    torch.save({"optimizer": Payload(tmp_path / "EXECUTED", {})}, tmp_path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        trainer.load(tmp_path)
    assert not (tmp_path / "EXECUTED").exists()


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def as_ranks_are(unet: torch.nn.Module) -> DistributedDataParallel:
    """Wrap the UNet as the ranks do."""
    return DistributedDataParallel(unet, gradient_as_bucket_view=True)


def test_gradients_of_ddp_are_those_of_one_device_and_views_of_its_buckets(
    one_rank: None, build_trainer: BuildTrainer
) -> None:
    """Also in micro-batches, from the first step on: a copy of the gradients would have 3.2 GiB at real size."""
    table, schedule = make_pairs(), Schedule(12, 2, 8, 0)
    alone, rank = build_trainer(batch=3), build_trainer(batch=3, wrap=as_ranks_are)
    buckets = {weight.grad.untyped_storage().data_ptr() for weight in rank.unet.parameters()}
    assert len(buckets) < 8 < len(list(rank.unet.parameters()))
    for number in range(3):
        for trainer in (alone, rank):
            accumulate(trainer, table, schedule.rank_batch(number))
        torch.testing.assert_close(gradient(rank), gradient(alone), rtol=0, atol=TOLERANCE)
        assert {weight.grad.untyped_storage().data_ptr() for weight in rank.unet.parameters()} == buckets
        alone.update()
        rank.update()
    torch.testing.assert_close(weights(rank), weights(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("fails_at", "is_halved"), [(0, True), (2, False)])
def test_memory_that_ends_while_the_ranks_add_up_is_raised_and_else_halves_the_batch(
    one_rank: None, build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch, fails_at: int, is_halved: bool
) -> None:
    """After the forward pass of the last micro-batch DDP has begun to wait for the other ranks."""
    rank, calls = build_trainer(batch=3, wrap=as_ranks_are), itertools.count()
    mse_loss = torch.nn.functional.mse_loss

    def fail(*inputs: Any, **options: Any) -> torch.Tensor:
        if next(calls) == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mse_loss(*inputs, **options)

    monkeypatch.setattr(torch.nn.functional, "mse_loss", fail)
    if is_halved:
        accumulate(rank, make_pairs(), Schedule(8, 1, 8, 0).rank_batch(0))
    else:
        with pytest.raises(torch.OutOfMemoryError):
            accumulate(rank, make_pairs(), Schedule(8, 1, 8, 0).rank_batch(0))
    assert rank.batch_per_device == (1 if is_halved else 3)


def test_checkpoint_of_another_optimizer_is_refused_with_the_fix(build_trainer: BuildTrainer, tmp_path: Path) -> None:
    build_trainer().save(tmp_path, [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"finetune.optimizer: the checkpoint is of adamw, not adamw8bit"):
        build_trainer({"optimizer": "adamw8bit"}).load(tmp_path)


@pytest.fixture
def build_family(tiny_family: str) -> BuildTrainer:
    def build(changes: dict[str, Any] | None = None, batch: int = 8, **arguments: Any) -> Trainer:
        settings = SETTINGS.model_copy(update=changes or {})
        return Trainer(settings, tiny_family, 0, 32, FinetunePool(batch_size=batch), **arguments)

    return build


def test_an_epoch_of_training_lowers_the_loss_of_every_family(build_family: BuildTrainer) -> None:
    table, schedule = make_pairs(), Schedule(12, 1, 2, 0)
    trainer, fixed = build_family({"learning_rate": 3e-3}), Schedule(12, 1, 12, 0).rank_batch(0)
    before = accumulate(trainer, table, fixed)
    trainer.optimizer.zero_grad()
    for number in range(schedule.steps):
        step(trainer, table, schedule.rank_batch(number))
    assert accumulate(trainer, table, fixed) < 0.98 * before


def test_two_ranks_and_small_batches_give_the_gradient_of_one_for_every_family(build_family: BuildTrainer) -> None:
    table, schedule = make_pairs(), Schedule(8, 1, 8, 0)
    whole, ranks = build_family(), [build_family(batch=3, rank=rank, world_size=2) for rank in (0, 1)]
    accumulate(whole, table, schedule.rank_batch(0))
    for rank in ranks:
        accumulate(rank, table, schedule.rank_batch(0, rank.rank, 2))
    mean = (gradient(ranks[0]) + gradient(ranks[1])) / 2
    torch.testing.assert_close(mean, gradient(whole), rtol=0, atol=1e-5)


def test_min_snr_lowers_the_loss_of_timesteps_with_a_larger_ratio_only(build_trainer: BuildTrainer) -> None:
    table, batch = make_pairs(), Schedule(12, 1, 12, 0).rank_batch(0)
    plain, capped, unlimited = (build_trainer({"snr_gamma": gamma}) for gamma in (0.0, 0.05, 1e9))
    losses = [accumulate(trainer, table, batch) for trainer in (plain, capped, unlimited)]
    assert losses[1] < 0.7 * losses[0]  # most timesteps have a larger ratio
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def with_rank(build: BuildTrainer, rank: int = 4, **changes: Any) -> Trainer:
    pytest.importorskip("peft")
    names = changes.pop("class_names", ())
    return build({"lora_rank": rank, "learning_rate": 1e-2} | changes, class_names=names)


def test_lora_trains_its_matrices_only_and_starts_from_the_base_model(build_trainer: BuildTrainer) -> None:
    table, schedule = make_pairs(), Schedule(12, 2, 12, 0)
    whole, lora = build_trainer(), with_rank(build_trainer)
    assert all("lora_" in name for name in lora.trained)
    assert len(lora.ema.weights) == len(lora.trained) > 0
    losses = [accumulate(trainer, table, schedule.rank_batch(0)) for trainer in (whole, lora)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the product of the new matrices is zero
    lora.optimizer.zero_grad()
    frozen = {name: weight.clone() for name, weight in lora.unet.named_parameters() if not weight.requires_grad}
    for number in range(schedule.steps):
        step(lora, table, schedule.rank_batch(number))
    assert accumulate(lora, table, schedule.rank_batch(0)) < losses[1]
    assert all(torch.equal(frozen[name], dict(lora.unet.named_parameters())[name]) for name in frozen)


def test_lora_of_every_family_exports_a_model_that_predicts_as_it_does(
    build_family: BuildTrainer, tmp_path: Path
) -> None:
    """Also after a checkpoint, which has only the trained matrices."""
    table, schedule = make_pairs(), Schedule(12, 1, 4, 0)
    trainer, resumed = with_rank(build_family, ema_decay=0.0), with_rank(build_family, ema_decay=0.0)
    for number in range(schedule.steps):
        step(trainer, table, schedule.rank_batch(number))
    (tmp_path / "checkpoint").mkdir()
    trainer.save(tmp_path / "checkpoint", [0.0, 0.0, 0.0])
    resumed.load(tmp_path / "checkpoint")
    resumed.export(tmp_path / "model")
    exported = Trainer(SETTINGS, str(tmp_path / "model"), 0, 32, FinetunePool(batch_size=8))
    batch = schedule.rank_batch(0)
    losses = [accumulate(one, table, batch) for one in (trainer, exported, build_family())]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)
    assert not any("lora" in name for name in exported.unet.state_dict())


def test_lora_in_bf16_keeps_the_frozen_weights_in_it_and_its_own_in_float32(build_trainer: BuildTrainer) -> None:
    table, batch = make_pairs(), Schedule(8, 1, 8, 0).rank_batch(0)
    full, half = (with_rank(build_trainer, mixed_precision=precision) for precision in ("no", "bf16"))
    kinds = {weight.requires_grad: weight.dtype for weight in half.unet.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    losses = [step(trainer, table, batch) for trainer in (full, half)]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of XL's scheduler in diffusers
def test_validation_of_lora_uses_the_parts_that_it_has_and_a_vae_in_the_lower_precision(
    build_family: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, pipelines = ["zero", "one"], []
    trainer, generate = with_rank(build_family, mixed_precision="bf16", class_names=names), stable_diffusion.img2img

    def record(pipeline: Any, *rest: Any, **options: Any) -> Any:
        pipelines.append(pipeline)
        return generate(pipeline, *rest, **options)

    monkeypatch.setattr(stable_diffusion, "img2img", record)
    assert [images.decode(data).size for data in trainer.validate(2)] == [(32, 32)] * 2
    (pipeline,) = pipelines
    assert pipeline.unet is trainer.unet
    own = stable_diffusion.TextEncoders.of(pipeline)
    assert all(one is other for one, other in zip(own.encoders, trainer.text.encoders, strict=True))
    assert pipeline.vae.dtype == (torch.float32 if len(own.encoders) > 1 else torch.bfloat16)
