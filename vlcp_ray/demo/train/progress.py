"""Print the progress of a training, and the learning rate schedule of all three trainings."""

import math
import time

import torch


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
