"""Whether every epoch sees every row once, on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlcp_ray.schedule import WINDOW, Schedule, epoch_order


@given(st.integers(1, 300), st.integers(0, 5), st.integers(1, 80))
def test_an_epoch_holds_every_row_once(n_rows: int, epoch: int, window: int) -> None:
    order = epoch_order(n_rows, 0, epoch, window)
    assert sorted(order) == list(range(n_rows))


def test_orders_differ_by_epoch_and_seed() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(epoch_order(50, 0, 0))


def test_reads_of_a_large_table_stay_local() -> None:
    order = epoch_order(20 * WINDOW, 0, 0)
    blocks = {int(position) // (WINDOW // 64) for position in order[:WINDOW]}
    assert len(blocks) == 64
    assert np.corrcoef(order, np.arange(len(order)))[0, 1] < 0.2


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 50), st.integers(1, 4))
def test_every_epoch_sees_every_row_once(n_rows: int, epochs: int, batch_size: int, world_size: int) -> None:
    schedule = Schedule(n_rows, epochs, batch_size, seed=3)
    parts = [schedule.part(step, rank, world_size) for step in range(schedule.steps) for rank in range(world_size)]
    seen = [pair for part in parts if part.weight for pair in zip(part.epochs, part.positions, strict=True)]
    assert sorted(seen) == [(epoch, row) for epoch in range(epochs) for row in range(n_rows)]
    assert all(len(part.positions) for part in parts)
    for step in range(schedule.steps):
        shares = [schedule.part(step, rank, world_size) for rank in range(world_size)]
        assert sum(len(part.positions) * part.weight for part in shares) == pytest.approx(world_size)
