"""Tests of the order of the rows in fine-tuning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.finetune.batches import Schedule, epoch_order


@given(st.integers(1, 300), st.integers(0, 5))
def test_epoch_order_has_every_row_once(n_rows: int, epoch: int) -> None:
    assert sorted(epoch_order(n_rows, 0, epoch)) == list(range(n_rows))


def test_epoch_order_is_a_permutation_of_its_own_seed() -> None:
    expected = np.random.default_rng(seed_for(5, "finetune", "order", 2)).permutation(128)
    np.testing.assert_array_equal(epoch_order(128, 5, 2), expected)


def test_epoch_order_of_other_epoch_or_seed_differs() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(epoch_order(50, 0, 0))


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


def test_schedule_counts_images_and_whole_epochs_after_its_steps() -> None:
    schedule = Schedule(n_rows=12, epochs=3, batch_size=8, seed=0)
    assert schedule.steps == 5
    assert [schedule.images_after(steps) for steps in range(6)] == [0, 8, 16, 24, 32, 36]
    assert [schedule.epochs_after(steps) for steps in range(6)] == [0, 0, 1, 2, 2, 3]
    assert Schedule(n_rows=12, epochs=2, batch_size=8, seed=0).steps == 3


def test_rank_batch_takes_every_second_row_with_its_epoch_and_weight() -> None:
    schedule = Schedule(n_rows=12, epochs=2, batch_size=8, seed=3)
    orders = [epoch_order(12, 3, epoch) for epoch in (0, 1)]
    second = schedule.rank_batch(1, rank=1, world_size=2)  # of the rows 8 to 15 those with an odd number
    assert second.epochs.tolist() == [0, 0, 1, 1]
    assert second.positions.tolist() == [orders[0][9], orders[0][11], orders[1][1], orders[1][3]]
    assert second.weight == 2 / 8
    none = Schedule(n_rows=9, epochs=1, batch_size=8, seed=3).rank_batch(1, rank=1, world_size=2)
    assert (none.weight, len(none.positions), none.epochs.tolist()) == (0.0, 1, [0])
