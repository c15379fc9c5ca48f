"""Tests of the order of the rows in fine-tuning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlcp_ray.stages.finetune import SHUFFLE_WINDOW
from vlcp_ray.stages.finetune.batches import Schedule, epoch_order


@given(st.integers(1, 300), st.integers(0, 5), st.integers(1, 80))
def test_epoch_order_with_any_window_has_every_row_once(n_rows: int, epoch: int, window: int) -> None:
    order = epoch_order(n_rows, 0, epoch, window)
    assert sorted(order) == list(range(n_rows))


def test_epoch_order_of_other_epoch_or_seed_differs() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(epoch_order(50, 0, 0))


def test_epoch_order_of_large_table_reads_few_blocks_per_window() -> None:
    order = epoch_order(20 * SHUFFLE_WINDOW, 0, 0)
    blocks = {int(position) // (SHUFFLE_WINDOW // 64) for position in order[:SHUFFLE_WINDOW]}
    assert len(blocks) == 64
    assert np.corrcoef(order, np.arange(len(order)))[0, 1] < 0.2


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 50), st.integers(1, 4))
def test_schedule_on_any_number_of_ranks_has_every_row_once_per_epoch(
    n_rows: int, epochs: int, batch_size: int, world_size: int
) -> None:
    schedule = Schedule(n_rows, epochs, batch_size, seed=3)
    batches = [
        schedule.rank_batch(step, rank, world_size) for step in range(schedule.steps) for rank in range(world_size)
    ]
    trained = [pair for batch in batches if batch.weight for pair in zip(batch.epochs, batch.positions, strict=True)]
    assert sorted(trained) == [(epoch, row) for epoch in range(epochs) for row in range(n_rows)]
    assert all(len(batch.positions) for batch in batches)
    for step in range(schedule.steps):
        shares = [schedule.rank_batch(step, rank, world_size) for rank in range(world_size)]
        assert sum(len(batch.positions) * batch.weight for batch in shares) == pytest.approx(world_size)
