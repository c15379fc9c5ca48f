"""Tests of the sweep over changes and batch sizes, at the tiny size."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks import variants
from tests.benchmarks.variants import CHANGES, sweep


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")  # of the libraries that write the folders
def test_variants_measures_every_kind_of_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "_MAX_BATCH", {"cpu": 1})
    monkeypatch.setattr(variants, "_SECONDS", {"cpu": 0.0})
    works = ["encode", "train", "generate", "caption"]
    measurements = list(variants.variants("tiny", tmp_path, works, ["channels-last"]))
    assert [(one.work, one.batch) for one in measurements] == [(work, 1) for work in works]
    assert all(one.images_per_second and one.peak_share and one.gib for one in measurements)


def test_sweep_stops_doubling_where_the_gain_is_below_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "seconds_per_call", lambda call, device: call())

    def make() -> tuple[Callable[[int], Callable[[], float]], float]:
        return lambda batch: lambda: max(1.0, batch / 4), 1.0  # four images take as long as one

    measurements = list(sweep("generate", "as it is", make, "cpu", 1.0))
    assert [one.batch for one in measurements] == [1, 2, 4, 8]
    assert measurements[-1].images_per_second == measurements[-2].images_per_second == 4


def test_changes_apply_to_a_model() -> None:
    import torch

    model = torch.nn.Conv2d(3, 8, 3)
    CHANGES["channels-last"](model)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    CHANGES["bf16"](model)
    assert model.weight.dtype == torch.bfloat16
