"""Tests of the training on noisy latents: what a batch has, and the moving average of the weights."""

import pytest
import torch

from vlcp_ray.demo.train import denoising


def test_train_returns_the_moving_average_and_changes_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    weights: list[float] = []

    def loss(chosen: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        assert clean.shape == noise.shape == (denoising.BATCH, 4, 4, 4)
        # Without a deviation the latents are the means of the rows.
        assert torch.equal(clean, chosen[:, None, None, None].expand_as(clean).float())
        assert 0 <= int(timesteps.min()) <= int(timesteps.max()) < denoising.TIMESTEPS
        weights.append(network.weight.item())
        return network.weight.square().sum()

    rows = torch.arange(3).float()[:, None, None, None].expand(3, 4, 4, 4)
    moments = torch.stack([rows, torch.zeros_like(rows)], dim=1)
    generator = torch.Generator().manual_seed(0)
    averaged = denoising.train("x", network, moments, loss, generator, steps=3, weight_decay=0.0, ema_decay=0.15)
    weights.append(network.weight.item())
    assert weights == sorted(weights, reverse=True)
    expected = weights[0]
    for decay, weight in zip((0.1, 0.15, 0.15), weights[1:], strict=True):
        expected = decay * expected + (1 - decay) * weight
    assert averaged.weight.item() == pytest.approx(expected)
    assert not averaged.weight.requires_grad
    assert "x: step 3/3" in capsys.readouterr().out
