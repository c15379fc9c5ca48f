"""The training on noisy latents that the UNet and the DiT share."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch

from vlcp_ray.demo.train.training import Training

STEPS = 3000
BATCH = 64
LEARNING_RATE = 2e-3
TIMESTEPS = 1000

Network = TypeVar("Network", bound=torch.nn.Module)
#: Takes the row numbers of a batch, its latents (n, 4, 4, 4), noise of that shape and timesteps (n,).
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def train(
    name: str,
    network: Network,
    moments: torch.Tensor,
    loss: Loss,
    generator: torch.Generator,
    *,
    steps: int,
    weight_decay: float,
    ema_decay: float,
) -> Network:
    """Train a network on `steps` of 64 latents, each with noise and a timestep, and return its moving average (EMA).

    Args:
        name: that the progress is printed with.
        network: changed in place.
        moments: (n, 2, 4, 4, 4), of `vae.moments`.
        loss: of a batch.
        generator: of batches, latents, noise and timesteps.
        steps: of the optimizer.
        weight_decay: of AdamW.
        ema_decay: of the average, smaller in the first steps.
    """
    averaged = copy.deepcopy(network).requires_grad_(False)
    training = Training(name, network.parameters(), steps, BATCH, LEARNING_RATE, weight_decay)
    for step in range(steps):
        chosen = torch.randint(len(moments), (BATCH,), generator=generator)
        mean, std = moments[chosen].unbind(dim=1)
        clean = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(TIMESTEPS, (BATCH,), generator=generator)
        training.step(loss(chosen, clean, noise, timesteps))
        _average(averaged, network, min(ema_decay, (1 + step) / (10 + step)))
    return averaged


@torch.no_grad()
def _average(averaged: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    for average, new in zip(averaged.parameters(), network.parameters(), strict=True):
        average.lerp_(new, 1 - decay)
