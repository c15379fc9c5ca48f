"""The order of the rows in fine-tuning: epochs, optimiser steps, and the batch of each rank."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from vlcp_ray.seeds import seed_for

Positions = npt.NDArray[np.int64]


def epoch_order(n_rows: int, seed: int, epoch: int) -> Positions:
    """Order the rows of an epoch: positions in the table sorted by image_id, each exactly once."""
    return np.random.default_rng(seed_for(seed, "finetune", "order", epoch)).permutation(n_rows)


_recent_order = lru_cache(maxsize=2)(epoch_order)  # a batch may contain rows of two epochs


@dataclass(frozen=True)
class RankBatch:
    """One rank's rows of an optimiser step.

    Args:
        positions: of the rows.
        epochs: of each row.
        weight: of a row in the loss.
        images: of the whole step, over all ranks.
    """

    positions: Positions
    epochs: Positions
    weight: float
    images: int


@dataclass(frozen=True)
class Schedule:
    """All optimiser steps: the epochs one after the other, cut into batches; the last batch may be smaller."""

    n_rows: int
    epochs: int
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return math.ceil(self.epochs * self.n_rows / self.batch_size)

    def images_after(self, steps: int) -> int:
        """Count the images that all ranks together have processed after `steps` steps."""
        return min(steps * self.batch_size, self.epochs * self.n_rows)

    def epochs_after(self, steps: int) -> int:
        """Count the epochs that are complete after `steps` steps."""
        return self.images_after(steps) // self.n_rows

    def rank_batch(self, step: int, rank: int = 0, world_size: int = 1) -> RankBatch:
        """Take every `world_size`-th row of a step's batch, starting with row `rank`.

        With this weight the mean of the ranks' gradients, which DDP computes, is the gradient of the batch's mean loss.
        A rank without a row gets one row of weight 0, because DDP waits for every rank.
        """
        batch = np.arange(self.images_after(step), self.images_after(step + 1))
        rows = batch[rank::world_size]
        weight = world_size / len(batch) if len(rows) else 0.0
        rows = rows if len(rows) else batch[:1]
        epochs = rows // self.n_rows
        positions = [
            _recent_order(self.n_rows, self.seed, int(epoch))[rows[epochs == epoch] % self.n_rows]
            for epoch in np.unique(epochs)
        ]
        return RankBatch(np.concatenate(positions), epochs, weight, len(batch))
