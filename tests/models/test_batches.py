"""Tests of batches: every row once, in order, in batches that are halved where the memory ends."""

import pytest
import torch

from vlcp_ray.models.batches import Batches
from vlcp_ray.monitoring.memory import measure_peaks, reset_peaks


def run(count: int, size: int, fits: int) -> list[tuple[list[int], int]]:
    """Run batches on a device whose memory holds `fits` rows, and return the rows and the size of each."""

    def call(rows: range, padded: int) -> tuple[list[int], int]:
        if padded > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(rows), padded

    return list(Batches(size, "encode.batch_size").run(count, call))


@pytest.mark.parametrize(("size", "fits", "sizes"), [(4, 4, [4, 4, 4]), (8, 4, [4, 4, 4]), (8, 3, [2] * 5)])
def test_batches_have_every_row_once_in_order(size: int, fits: int, sizes: list[int]) -> None:
    done = run(10, size, fits)
    assert [row for rows, _ in done for row in rows] == list(range(10))
    assert [padded for _, padded in done] == sizes


def test_batches_that_do_not_fit_name_the_setting_and_are_counted() -> None:
    reset_peaks("a test")
    reset_peaks("another test")
    with pytest.raises(ValueError, match=r"encode.batch_size: not even one image fits .*num_gpus in the scale file"):
        run(10, 8, 0)
    assert measure_peaks().halvings == 3
    reset_peaks("a test")
    assert measure_peaks().halvings == 0


def test_batches_stay_halved() -> None:
    batches, failed = Batches(8, "x"), list[int]()

    def call(rows: range, padded: int) -> int:
        if padded > 4:
            failed.append(padded)
            raise torch.OutOfMemoryError
        return len(rows)

    assert list(batches.run(8, call)) + list(batches.run(6, call)) == [4, 4, 4, 2]
    assert failed == [8]


def test_batches_pass_other_errors_on() -> None:
    def call(rows: range, padded: int) -> None:
        raise RuntimeError("another error")

    with pytest.raises(RuntimeError, match="another error"):
        list(Batches(4, "x").run(3, call))
