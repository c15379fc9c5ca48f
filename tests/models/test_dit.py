"""Tests of DiT: its loss against plain loops, DiffFit's weights, and sampling against diffusers' pipeline."""

import copy
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline

from tests import tiny_models
from vlcp_ray.models import dit

OPTIONS = {"steps": 4, "guidance_scale": 4.0, "guided_channels": 3}


@pytest.fixture(scope="module")
def diffusion() -> dit.Diffusion:
    return dit.Diffusion(tiny_models.dit_scheduler(), torch.device("cpu"))


def normal_cdf(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


def plain_loss(output: np.ndarray, clean: np.ndarray, noise: np.ndarray, t: int) -> float:
    """The loss of one row, number by number, as Improved DDPM states it."""
    betas = np.linspace(0.0001, 0.02, 1000)
    kept = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], kept[:-1]])
    squares, bounds = [], []
    for c, y, x in product(range(4), range(4), range(4)):
        predicted, between = float(output[c, y, x]), float(output[4 + c, y, x])
        start, eps = float(clean[c, y, x]), float(noise[c, y, x])
        noisy = math.sqrt(kept[t]) * start + math.sqrt(1 - kept[t]) * eps
        guess = (noisy - math.sqrt(1 - kept[t]) * predicted) / math.sqrt(kept[t])
        first = betas[t] * math.sqrt(before[t]) / (1 - kept[t])
        second = (1 - before[t]) * math.sqrt(1 - betas[t]) / (1 - kept[t])
        mean, model_mean = first * start + second * noisy, first * guess + second * noisy
        at = max(t, 1)
        least, most = math.log(betas[at] * (1 - before[at]) / (1 - kept[at])), math.log(betas[t])
        log_variance = (between + 1) / 2 * most + (1 - between) / 2 * least
        squares.append((predicted - eps) ** 2)
        if t:
            ratio = math.exp(least - log_variance) + (mean - model_mean) ** 2 * math.exp(-log_variance)
            bounds.append(0.5 * (log_variance - least - 1 + ratio))
        else:
            deviation = math.exp(0.5 * log_variance)
            above = 1.0 if start > 0.999 else normal_cdf((start - model_mean + 1 / 255) / deviation)
            below = 0.0 if start < -0.999 else normal_cdf((start - model_mean - 1 / 255) / deviation)
            bounds.append(-math.log(max(above - below, 1e-12)))
    return float(np.mean(squares) + np.mean(bounds) / math.log(2))


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
def test_losses_equal_those_of_plain_loops(diffusion: dit.Diffusion, timestep: int) -> None:
    generator = torch.Generator().manual_seed(timestep)
    clean, noise = (torch.randn(2, 4, 4, 4, generator=generator) for _ in range(2))
    clean[0, 0, 0, :2] = torch.tensor([1.5, -1.5])  # beyond the outer levels
    near = 0.01 if timestep == 0 else 0.3
    output = torch.cat([noise, noise * 0], dim=1) + near * torch.randn(2, 8, 4, 4, generator=generator)
    times = torch.full((2,), timestep)
    noisy = diffusion.add_noise(clean, noise, times)
    losses = diffusion.losses(output, clean, noisy, noise, times)
    expected = [plain_loss(*(values[row].numpy() for values in (output, clean, noise)), timestep) for row in range(2)]
    assert losses.tolist() == pytest.approx(expected, rel=2e-3)


def test_gradient_of_the_bound_does_not_reach_the_predicted_noise(diffusion: dit.Diffusion) -> None:
    output, zeros = torch.randn(1, 8, 4, 4, requires_grad=True), torch.zeros(1, 4, 4, 4)
    noise, times = torch.randn(1, 4, 4, 4), torch.tensor([300])
    loss = diffusion.losses(output, zeros, diffusion.add_noise(zeros, noise, times), noise, times).sum()
    (gradient,) = torch.autograd.grad(loss, output)
    torch.testing.assert_close(gradient[:, :4], 2 * (output.detach()[:, :4] - noise) / 64)
    assert (gradient[:, 4:] != 0).all()


def test_predicted_clean_latents_of_the_true_noise_are_the_clean_ones(diffusion: dit.Diffusion) -> None:
    clean, noise, times = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4), torch.tensor([0, 400, 800])
    noisy = diffusion.add_noise(clean, noise, times)
    torch.testing.assert_close(diffusion.predict_clean(noisy, noise, times), clean, rtol=0, atol=1e-4)


def test_adapt_changes_no_output_and_shares_the_embeddings(tiny_dit: str) -> None:
    plain = DiTPipeline.from_pretrained(tiny_dit, low_cpu_mem_usage=False).transformer.eval()
    plain = dit.share_embeddings(plain)  # of random weights, those of the blocks differ
    network = dit.adapt(copy.deepcopy(plain))
    inputs = (torch.randn(2, 4, 4, 4), torch.tensor([3, 900]), torch.tensor([1, 1000]))
    with torch.no_grad():
        torch.testing.assert_close(network(*inputs).sample, plain(*inputs).sample, rtol=0, atol=1e-6)
    tables = [name for name, _ in network.named_parameters() if "class_embedder" in name]
    assert tables == ["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]


def test_difffit_trains_biases_factors_and_classes_only(tiny_dit: str) -> None:
    network = dit.load(tiny_dit, "cpu")
    trained, every = set(dit.trained_by_difffit(network)), {name for name, _ in network.named_parameters()}
    factors = {name for name in every if name.endswith("gamma")}
    assert len(factors) == 6  # of the first block of two: queries, keys, values, projection, and both branches
    assert all("transformer_blocks.0." in name for name in factors)
    assert trained == factors | {name for name in every if name.endswith("bias") or "class_embedder" in name}
    assert "transformer_blocks.0.norm1.linear.weight" not in trained
    assert not any(weight.requires_grad for weight in network.parameters())


def sampled(network: Any, schedule: Any, classes: list[int], seeds: list[int], **changes: Any) -> torch.Tensor:
    return dit.denoise(network, schedule, classes, seeds, **(OPTIONS | changes))


def test_denoise_does_not_depend_on_the_other_rows(tiny_dit: str) -> None:
    network, schedule = dit.load(tiny_dit, "cpu"), dit.load_schedule(tiny_dit)
    together = sampled(network, schedule, [0, 3, 5], [7, 8, 9])
    alone = torch.cat([sampled(network, schedule, [c], [s]) for c, s in ((0, 7), (3, 8), (5, 9))])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)  # of values up to some hundreds
    assert not torch.allclose(together[0], sampled(network, schedule, [1], [7])[0], atol=1e-3)
    assert not torch.allclose(together[0], sampled(network, schedule, [0], [8])[0], atol=1e-3)


def test_denoise_equals_the_pipeline_of_diffusers_where_nothing_is_released_otherwise(tiny_dit: str) -> None:
    """All four channels guided, no learned variance: with DDIM, whose steps have no noise, image by image."""
    pipeline = DiTPipeline.from_pretrained(tiny_dit, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    dit.share_embeddings(pipeline.transformer)
    schedule = DDIMScheduler.from_config(pipeline.scheduler.config)
    latents = sampled(pipeline.transformer, schedule, [3, 1], [5, 6], guided_channels=4)
    pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2 + 0.5
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    expected = pipeline([3, 1], guidance_scale=4.0, generator=generators, num_inference_steps=4, output_type="pt")
    torch.testing.assert_close(pixels.clamp(0, 1), expected.images, rtol=0, atol=1e-5)


def test_schedule_has_the_timesteps_and_variances_of_openais_respacing(tiny_dit: str) -> None:
    schedule = dit.load_schedule(tiny_dit)
    schedule.set_timesteps(50)
    times = [round(number * 999 / 49) for number in range(50)]
    assert schedule.timesteps.tolist() == times[::-1]
    kept = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))[times]
    betas = 1 - kept[1:] / kept[:-1]
    least = betas * (1 - kept[:-1]) / (1 - kept[1:])
    for between, expected in ((1.0, betas[10]), (-1.0, least[10])):
        variance = schedule._get_variance(torch.tensor(times[11]), predicted_variance=torch.tensor(between))
        assert float(torch.exp(variance)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("channels", [3, 4])
def test_guidance_changes_the_guided_channels_only(tiny_dit: str, channels: int) -> None:
    """In one step without noise: the channels that are not guided are those of the class alone."""
    network, schedule = dit.load(tiny_dit, "cpu"), DDIMScheduler.from_config(tiny_models.dit_scheduler().config)
    guided = sampled(network, schedule, [2], [0], steps=1, guided_channels=channels)
    plain = sampled(network, schedule, [2], [0], steps=1, guidance_scale=1.0)
    same = [torch.allclose(guided[0, channel], plain[0, channel], atol=1e-5) for channel in range(4)]
    assert same == [channel >= channels for channel in range(4)]


def test_sampler_makes_the_same_images_for_any_batch_size(tiny_dit: str) -> None:
    classes, seeds = [0, 1, 2, 3, 700], [5, 6, 7, 8, 9]
    images = [dit.Sampler(tiny_dit, "cpu", size, **OPTIONS)(classes, seeds).pixels.astype(int) for size in (1, 2, 8)]
    assert images[0].shape == (5, 32, 32, 3)
    assert all(np.abs(other - images[0]).max() <= 1 for other in images[1:])


def test_set_weights_replaces_those_that_are_named(tiny_dit: str) -> None:
    network = dit.load(tiny_dit, "cpu")
    name = "transformer_blocks.0.attn1.to_q.gamma"
    dit.set_weights(network, {name: torch.full((16,), 2.0)})
    assert dict(network.named_parameters())[name].tolist() == [2.0] * 16
    with pytest.raises(KeyError, match="no_weight"):
        dit.set_weights(network, {"no_weight": torch.zeros(1)})
