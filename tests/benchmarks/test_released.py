"""Tests of the comparison with the released evaluators: what needs no checkout of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.benchmarks.released import CASES, Case, OnCpu, line, ours, released_names, write_folders
from tests.image_sets import SHARED
from vlcp_ray.images import decode
from vlcp_ray.models.classifiers import build_classifier

needs_data = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")


def test_code_for_cuda_runs_on_the_cpu() -> None:
    with OnCpu():
        made = [torch.zeros(2, device="cuda"), torch.arange(2).to("cuda"), torch.ones(2).cuda()]
        network = torch.nn.Linear(2, 1).cuda()
        assert {tensor.device.type for tensor in (*made, *network.parameters(), network(made[2]))} == {"cpu"}
    assert torch.ones(2).to("meta").device.type == "meta"


def test_weights_get_the_released_names_in_the_order_of_the_layers() -> None:
    network = build_classifier("ConvNet-3", num_classes=10, input_size=32, width=8, seed=0, norm="batch")
    named = released_names(network.state_dict())
    assert len(named) == len(network.state_dict())
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for level in range(3):
        assert torch.equal(named[f"layers.conv.{level}.weight"], convolutions[level].weight)
        assert torch.equal(named[f"layers.norm.{level}.bias"], norms[level].bias)
        assert named[f"layers.norm.{level}.running_mean"].shape == (8,)
    assert named["classifier.weight"].shape == (10, 8 * 4 * 4)


def test_line_has_means_deviations_and_the_error_of_the_difference() -> None:
    text = line(CASES[0], [50.0, 52.0, 54.0, 56.0], [49.0, 50.0, 51.0, 52.0], 61.4)
    assert text.startswith("minimax, ConvNet-3, 32 px")
    assert " 53.0 ± 2.6 (4)   50.5 ± 1.3 (4)  -2.5 ± 1.4  61 s" in text


@needs_data
@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
def test_folders_have_the_images_of_both_splits(case: Case, tmp_path: Path) -> None:
    few = replace(case, ipc=2, val=3)
    write_folders(few, tmp_path)
    for split, count in (("train", 2), ("val", 3)):
        files = sorted((tmp_path / split).glob("*/*.png"))
        assert [int(file.parent.name) for file in files] == [n for n in range(few.classes) for _ in range(count)]
        assert decode(files[0].read_bytes()).size == (few.size, few.size)


@needs_data
def test_our_side_is_a_function_of_the_seed() -> None:
    few = replace(CASES[0], classes=5, ipc=2, val=4, epochs=2, width=8)
    first, again, second = (list(ours(few, seeds, None)) for seeds in ([0, 1], [0, 1], [1]))
    assert first == again
    assert first[1] == second[0]
    assert all(0 <= top1 <= 100 for top1 in first)
