"""Knows which rows make which step of a training, on how many ranks whatsoever (METHOD 2.2)."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from vlcp_ray.seeds import seed_for

Positions = npt.NDArray[np.int64]

#: Rows that are shuffled among each other; at 512 px their moments are 2 GiB. Part of the method: it decides the order.
WINDOW: Final = 16_384
_BLOCKS_PER_WINDOW: Final = 64  # runs of neighbouring rows in a window: few reads, yet many classes at once


def epoch_order(n_rows: int, seed: int, epoch: int, window: int = WINDOW) -> Positions:
    """The order of an epoch: positions in the table sorted by image_id, each exactly once.

    Up to `window` rows it is a plain permutation. Beyond, blocks of neighbouring rows are permuted, and then the rows
    within each window of 64 blocks, so that a reader holds one window at a time instead of seeking for every row.
    """
    random = np.random.default_rng(seed_for(seed, "finetune", "order", epoch))
    if n_rows <= window:
        return random.permutation(n_rows)
    size = max(1, window // _BLOCKS_PER_WINDOW)
    starts = random.permutation(np.arange(0, n_rows, size))
    order = np.concatenate([np.arange(start, min(start + size, n_rows)) for start in starts])
    return np.concatenate([random.permutation(order[start : start + window]) for start in range(0, n_rows, window)])


_recent_order = lru_cache(maxsize=2)(epoch_order)  # a batch may lie across two epochs


@dataclass(frozen=True)
class Part:
    """What one rank does of one optimiser step: rows by position, the epoch of each, and a row's share of the loss."""

    positions: Positions
    epochs: Positions
    weight: float


@dataclass(frozen=True)
class Schedule:
    """Which rows make which optimiser step: the epochs end to end, cut into batches, the last with what is left."""

    n_rows: int
    epochs: int
    batch_size: int
    seed: int
    window: int = WINDOW

    @property
    def steps(self) -> int:
        return math.ceil(self.epochs * self.n_rows / self.batch_size)

    def images_after(self, steps: int) -> int:
        """Images seen by all ranks in the first `steps` steps."""
        return min(steps * self.batch_size, self.epochs * self.n_rows)

    def epochs_after(self, steps: int) -> int:
        """Whole epochs in the first `steps` steps."""
        return self.images_after(steps) // self.n_rows

    def part(self, step: int, rank: int = 0, world_size: int = 1) -> Part:
        """Every `world_size`-th row of a step's batch.

        The weight makes the mean of the ranks' gradients, which DDP takes, that of the batch's mean loss. A rank for
        which no row is left gets one of weight 0: DDP waits for every rank.
        """
        batch = np.arange(self.images_after(step), self.images_after(step + 1))
        mine = batch[rank::world_size]
        weight = world_size / len(batch) if len(mine) else 0.0
        mine = mine if len(mine) else batch[:1]
        epochs = mine // self.n_rows
        positions = [
            _recent_order(self.n_rows, self.seed, int(epoch), self.window)[mine[epochs == epoch] % self.n_rows]
            for epoch in np.unique(epochs)
        ]
        return Part(np.concatenate(positions), epochs, weight)
