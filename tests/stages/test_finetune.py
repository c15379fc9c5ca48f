"""Whether fine-tuning follows its recipe, however its batches are cut, and goes on where it stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from vlcp_ray import config, images, schemas
from vlcp_ray.schedule import Part, Schedule
from vlcp_ray.stages.finetune import Finetune, Progress, train

SETTINGS = config.Finetune(epochs=2, batch_size=8, learning_rate=1e-3, mixed_precision="no")
TOLERANCE = 1e-6  # gradients of about 0.1 in float32, summed in another order


def pairs(n: int = 12, spread: float = -4.0) -> pa.Table:
    """PAIRS rows whose captions have different lengths."""
    random = np.random.default_rng(0)
    moments = random.normal(size=(n, 2, 8, 4, 4)).astype(np.float16)
    moments[:, :, 4:] = spread
    columns = {
        "image_id": [f"img-{row:03d}" for row in range(n)],
        "label": [0] * n,
        "class_name": ["zero"] * n,
        "caption": ["a" * (3 * row) for row in range(n)],
        "latent": schemas.tensor_array(moments[:, 0, :4]),
        "train_moments": schemas.tensor_array(moments),
    }
    return pa.table(columns, schema=schemas.pairs_schema((4, 4, 4), (8, 4, 4)))


def fetcher(table: pa.Table) -> Callable[[Any], pa.Table]:
    return lambda positions: table.take(pa.array(positions))


@pytest.fixture
def learner(tiny_stable_diffusion: str) -> Callable[..., Finetune]:
    def build(changes: dict[str, Any] | None = None, batch: int = 8, **arguments: Any) -> Finetune:
        recipe = SETTINGS.model_copy(update=changes or {})
        return Finetune(recipe, tiny_stable_diffusion, seed=0, resolution=32, batch_per_device=batch, **arguments)

    return build


def gradient(one: Finetune) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in one.unet.parameters()])


def weights(one: Finetune) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in one.unet.parameters()])


def averages(one: Finetune) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in one.ema.shadow_params])


def test_micro_batches_make_the_gradient_of_the_whole(learner: Callable[..., Finetune]) -> None:
    table, part = pairs(), Schedule(12, 2, 8, 0).part(1)  # lies across two epochs
    assert set(part.epochs) == {0, 1}
    whole, cut = learner(), learner(batch=3)
    losses = [one.accumulate(fetcher(table)(part.positions), part) for one in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(gradient(whole), gradient(cut), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rows", [8, 5, 1])  # even, ragged, and a rank without a row
def test_two_ranks_make_the_gradient_of_one(learner: Callable[..., Finetune], rows: int) -> None:
    table, schedule = pairs(), Schedule(rows, 1, 8, 0)
    one = learner()
    loss = one.accumulate(fetcher(table)(schedule.part(0).positions), schedule.part(0))
    ranks, shares = [learner(batch=3, rank=rank, world_size=2) for rank in (0, 1)], []
    for rank in ranks:
        part = schedule.part(0, rank.rank, 2)
        shares.append(rank.accumulate(fetcher(table)(part.positions), part))
    mean = (gradient(ranks[0]) + gradient(ranks[1])) / 2  # what DDP does
    torch.testing.assert_close(mean, gradient(one), rtol=0, atol=TOLERANCE)
    assert sum(shares) == pytest.approx(loss, abs=1e-6)


def test_checkpointing_saves_memory_and_changes_nothing(learner: Callable[..., Finetune]) -> None:
    table, part = pairs(), Schedule(8, 1, 8, 0).part(0)
    both = [learner({"gradient_checkpointing": flag}) for flag in (True, False)]
    for one in both:
        one.accumulate(fetcher(table)(part.positions), part)
    torch.testing.assert_close(gradient(both[0]), gradient(both[1]), rtol=0, atol=TOLERANCE)


def test_draws_belong_to_the_image_and_its_epoch(learner: Callable[..., Finetune]) -> None:
    one, table = learner(), pairs()
    latents, noise, timesteps = one._draws(table, np.zeros(12, np.int64))
    again = one._draws(table.slice(5, 1), np.zeros(1, np.int64))
    later = one._draws(table, np.ones(12, np.int64))
    for whole, row, other in zip((latents, noise, timesteps), again, later, strict=True):
        assert torch.equal(whole[5], row[0])
        assert not torch.equal(whole, other)
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000


def test_latents_are_drawn_from_one_of_the_flips(learner: Callable[..., Finetune]) -> None:
    table = pairs(spread=-30.0)  # no spread: the latent is the mean x 0.5
    means = torch.from_numpy(schemas.tensors(table["train_moments"])[:, :, :4].astype(np.float32)) * 0.5
    for flag, expected in ((True, {0, 1}), (False, {0})):
        latents, _, _ = learner({"random_flip": flag})._draws(table, np.zeros(12, np.int64))
        distance = (means - latents[:, None]).abs().amax(dim=(2, 3, 4))
        assert distance.min(dim=1).values.max() < 1e-5
        assert set(distance.argmin(dim=1).tolist()) == expected


def test_only_the_unet_learns_and_the_average_follows_its_formula(learner: Callable[..., Finetune]) -> None:
    one, table, schedule = learner(), pairs(), Schedule(12, 5, 8, 0)
    frozen = [weight.clone() for weight in one.text_encoder.parameters()]
    expected, start = averages(one).clone(), weights(one)
    for step in range(4):
        one.step(fetcher(table)(schedule.part(step).positions), schedule.part(step))
        n = step  # diffusers counts from the step before: its first step copies the weights
        decay = 0.0 if n == 0 else min(SETTINGS.ema_decay, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights(one)
        torch.testing.assert_close(averages(one), expected, rtol=0, atol=1e-6)
    assert not torch.equal(weights(one), start)
    assert all(torch.equal(old, new) for old, new in zip(frozen, one.text_encoder.parameters(), strict=True))
    assert not any(weight.requires_grad for weight in one.text_encoder.parameters())


def test_the_loss_falls_on_a_small_set(learner: Callable[..., Finetune]) -> None:
    reports: list[Progress] = []
    one = learner({"learning_rate": 3e-3, "gradient_checkpointing": False})
    train(one, Schedule(8, 40, 8, 0), fetcher(pairs(8)), reports.append)
    losses = [report.loss for report in reports]
    assert len(losses) == 40
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


def test_reports_come_at_the_end_of_every_epoch(learner: Callable[..., Finetune]) -> None:
    reports: list[Progress] = []
    train(learner(), Schedule(12, 3, 8, 0), fetcher(pairs()), reports.append)
    assert [(report.step, report.epoch, report.images) for report in reports] == [(2, 1, 16), (3, 2, 24), (5, 3, 36)]
    assert all(report.loss > 0 and report.images_per_second > 0 for report in reports)


def test_reports_have_the_rate_and_the_mean_norm_of_the_gradient(learner: Callable[..., Finetune]) -> None:
    reports: list[Progress] = []
    table, schedule, one = pairs(), Schedule(12, 3, 8, 0), learner()
    train(learner(), schedule, fetcher(table), reports.append)
    norms = []
    for step in range(schedule.steps):
        one.accumulate(fetcher(table)(schedule.part(step).positions), schedule.part(step))
        norms.append(gradient(one).norm().item())  # before it is clipped
        one.update()
    means = [np.mean(norms[:2]), norms[2], np.mean(norms[3:])]  # the epochs end after steps 2, 3 and 5
    assert [report.gradient_norm for report in reports] == pytest.approx(means, rel=1e-4)  # float32
    assert {report.learning_rate for report in reports} == {SETTINGS.learning_rate}


def test_a_resumed_run_is_the_undisturbed_one(learner: Callable[..., Finetune], tmp_path: Path) -> None:
    table, schedule = pairs(), Schedule(12, 3, 8, 0)
    whole, first, second = learner(), learner(), learner()
    undisturbed: list[Progress] = []
    train(whole, schedule, fetcher(table), undisturbed.append)

    def stop(progress: Progress) -> None:
        first.save(tmp_path)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(first, schedule, fetcher(table), stop)
    second.load(tmp_path)
    assert second.steps_done == 2
    resumed: list[Progress] = []
    train(second, schedule, fetcher(table), resumed.append)
    assert torch.equal(weights(second), weights(whole))
    assert torch.equal(averages(second), averages(whole))
    assert [report.loss for report in resumed] == [report.loss for report in undisturbed[1:]]
    train(second, schedule, fetcher(table), pytest.fail)  # nothing is left to do


def test_export_is_a_pipeline_with_the_averaged_weights(learner: Callable[..., Finetune], tmp_path: Path) -> None:
    one = learner()
    train(one, Schedule(12, 2, 8, 0), fetcher(pairs()), lambda _: None)
    before = weights(one)
    one.export(tmp_path / "model")
    assert torch.equal(weights(one), before)
    loaded = StableDiffusionImg2ImgPipeline.from_pretrained(
        tmp_path / "model", safety_checker=None, low_cpu_mem_usage=False
    )
    exported = torch.cat([weight.flatten() for weight in loaded.unet.parameters()])
    assert torch.equal(exported, averages(one))
    assert not torch.equal(exported, before)


def test_validation_draws_images_and_leaves_no_trace(learner: Callable[..., Finetune]) -> None:
    one, other = learner(), learner(batch=1)
    before = weights(one)
    drawn = one.validate(["zero", "one"])
    assert [images.decode(data).size for data in drawn] == [(32, 32)] * 2
    assert torch.equal(weights(one), before)
    apart = [np.asarray(images.decode(data)).astype(int) for data in other.validate(["zero", "one"])]
    assert all(np.abs(np.asarray(images.decode(a)) - b).max() <= 1 for a, b in zip(drawn, apart, strict=True))


def test_bad_runs_are_refused(learner: Callable[..., Finetune]) -> None:
    with pytest.raises(ValueError, match=r"finetune.mixed_precision: fp16 needs a GPU"):
        learner({"mixed_precision": "fp16"})
    one, table = learner(), pairs(spread=float("inf"))
    with pytest.raises(ValueError, match=r"finetune.learning_rate: training diverged at step 1"):
        one.step(table.slice(0, 4), Part(np.arange(4), np.zeros(4, np.int64), 0.25))


def test_bf16_runs_close_to_float32(learner: Callable[..., Finetune]) -> None:
    table, part = pairs(), Schedule(8, 1, 8, 0).part(0)
    exact, rough = (learner({"mixed_precision": precision}) for precision in ("no", "bf16"))
    losses = [one.step(fetcher(table)(part.positions), part) for one in (exact, rough)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
