"""The optimiser of fine-tuning and the moving average of the weights, in as little memory as the device needs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from vlcp_ray.scale import OptimizerKind
from vlcp_ray.settings import ConfigError


def make_optimizer(
    kind: OptimizerKind, weights: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> Any:
    """Make AdamW with torch's default betas (0.9, 0.999) and eps 1e-8, which are those of the recipe.

    Args:
        kind: `adamw` updates all weights in one kernel, without a copy of the moments and without waiting for the
            device; `adamw8bit` keeps its moments in 8 bits (bitsandbytes), a quarter of the memory.
        weights: that it updates.
        learning_rate, weight_decay: of AdamW.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    options: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if kind == "adamw":
        return torch.optim.AdamW(list(weights), fused=True, **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "finetune.optimizer: adamw8bit needs bitsandbytes, which is not installed; pip install bitsandbytes"
        ) from error
    return AdamW8bit(list(weights), **options)


class MovingAverage:
    """The exponential moving average (EMA) of a network's trained weights: diffusers' `EMAModel`, without copies."""

    def __init__(self, network: nn.Module, decay: float, device: torch.device, warm_up: bool = True) -> None:
        """Copy the weights that require gradients.

        Args:
            decay: of the average.
            device: where the average is kept.
            warm_up: whether the decay of step n is at most (1 + n) / (10 + n), as in diffusers' recipes; else it is the
                same in every step.
        """
        self.trained = [weight for weight in network.parameters() if weight.requires_grad]
        constant = {} if warm_up else {"min_decay": decay, "update_after_step": -1}
        self.model = EMAModel(self.trained, decay=decay, **constant)
        self.weights = [weight.to(device) for weight in self.model.shadow_params]

    @property
    def weights(self) -> list[torch.Tensor]:
        """The averages, in the order of the parameters."""
        return list(self.model.shadow_params)

    @weights.setter
    def weights(self, weights: list[torch.Tensor]) -> None:
        self.model.shadow_params = weights

    @property
    def steps(self) -> int:
        """Number of steps that the average has followed."""
        return int(self.model.optimization_step)

    @steps.setter
    def steps(self, steps: int) -> None:
        self.model.optimization_step = steps

    @torch.no_grad()
    def step(self) -> None:
        """Follow the weights: average += (1 - decay) x (weight - average)."""
        self.steps += 1
        share = 1 - self.model.get_decay(self.steps)
        averages, weights = self.weights, [weight.detach() for weight in self.trained]
        if averages[0].device == weights[0].device:
            torch._foreach_lerp_(averages, weights, share)
            return
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight.to(average.device), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights of the network by their average inside the `with` block."""
        self.model.store(self.trained)
        self.model.copy_to(self.trained)
        try:
            yield
        finally:
            self.model.restore(self.trained)
