"""Whether the sweep over changes and batches runs whole at the tiny size, and stops where it does not pay."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vlcp_ray.bench import variants
from vlcp_ray.bench.variants import CHANGES, sweep


@pytest.mark.filterwarnings("ignore")  # of the libraries that write the folders
def test_every_kind_of_work_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "_MOST", {"cpu": 1})
    monkeypatch.setattr(variants, "_SECONDS", {"cpu": 0.0})
    found = list(variants.variants("tiny", tmp_path, ["encode", "train", "draw", "describe"], ["channels-last"]))
    assert [(one.work, one.batch) for one in found] == [(w, 1) for w in ("encode", "train", "draw", "describe")]
    assert all(one.images_per_second and one.peak_share and one.gib for one in found)


def test_doubling_ends_where_it_gains_less_than_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "_seconds", lambda call, device: call())

    def make() -> tuple[Callable[[int], Callable[[], float]], float]:
        return lambda batch: lambda: max(1.0, batch / 4), 1.0  # four at once are as fast as one

    found = list(sweep("draw", "as it is", make, "cpu", 1.0))
    assert [one.batch for one in found] == [1, 2, 4, 8]
    assert found[-1].images_per_second == found[-2].images_per_second == 4


def test_every_change_is_a_change_of_a_real_model() -> None:
    import torch

    model = torch.nn.Conv2d(3, 8, 3)
    CHANGES["channels-last"](model)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    CHANGES["bf16"](model)
    assert model.weight.dtype == torch.bfloat16
