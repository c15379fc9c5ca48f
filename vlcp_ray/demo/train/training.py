"""What all trainings share: the optimiser with its learning rate schedule, and the printed progress."""

import math
import time
from collections.abc import Iterable

import torch


class Training:
    """AdamW on some weights, with the learning rate of `warm_cosine` and gradients of a norm of at most 1.

    Args:
        name: that is printed.
        weights: that are trained.
        steps: of the whole training.
        batch: images of a step.
        learning_rate, weight_decay: of AdamW.
    """

    def __init__(
        self,
        name: str,
        weights: Iterable[torch.nn.Parameter],
        steps: int,
        batch: int,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        self.weights = list(weights)
        self.optimizer = torch.optim.AdamW(self.weights, lr=learning_rate, weight_decay=weight_decay)
        self.schedule = warm_cosine(self.optimizer, steps)
        self.progress = Progress(name, steps, batch)

    def step(self, loss: torch.Tensor) -> None:
        """Take one step down the gradient of a loss."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.progress.step(loss.item())


class Progress:
    """Print the mean loss and the images per second ten times over a training."""

    def __init__(self, name: str, steps: int, batch: int) -> None:
        self.name, self.steps, self.batch = name, steps, batch
        self.every = max(steps // 10, 1)
        self.done = 0
        self.losses: list[float] = []
        self.since = time.perf_counter()

    def step(self, loss: float) -> None:
        """Count one step with its loss."""
        self.done += 1
        self.losses.append(loss)
        if self.done % self.every == 0 or self.done == self.steps:
            seconds = time.perf_counter() - self.since
            rate = len(self.losses) * self.batch / seconds
            mean = sum(self.losses) / len(self.losses)
            print(f"{self.name}: step {self.done}/{self.steps}, loss {mean:.4f}, {rate:.0f} images/s", flush=True)
            self.losses, self.since = [], time.perf_counter()


def warm_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm up linearly over the first 5 % of the steps, then decay by a cosine to 2 % of the learning rate."""
    warm = max(steps // 20, 1)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
