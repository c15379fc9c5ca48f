"""Whether the stored counts are those of the models, at their real sizes, and hold at sizes that were not counted."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlcp_ray.config import Job, Network
from vlcp_ray.cost import counts
from vlcp_ray.cost.work import classify, models, side_terms, unet_terms
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.needs import parameters
from vlcp_ray.settings import build

STORED = json.loads(Path(counts.__file__).with_name("counts.json").read_text())
NAMES = {
    "unet": ("benjamin-paine/stable-diffusion-v1-5", "unet"),
    "vae": ("benjamin-paine/stable-diffusion-v1-5", "vae"),
    "text_encoder": ("benjamin-paine/stable-diffusion-v1-5", "text_encoder"),
    "llava": ("llava-hf/llava-1.5-7b-hf", ""),
}


@pytest.mark.parametrize("part", NAMES)
def test_the_paper_s_models_have_as_many_parameters_as_their_files_on_the_hub(part: str) -> None:
    found = counts.count(part, counts.PAPER[part])
    assert found["parameters"] == parameters(*NAMES[part])
    stored = STORED[part][0]
    assert found.keys() == stored.keys()
    assert all(found[name] == pytest.approx(stored[name], rel=1e-6, abs=1.0) for name in stored)


@pytest.mark.parametrize("part", NAMES)
def test_the_demo_s_models_are_counted_as_they_lie_in_the_package(part: str) -> None:
    model, folder = ("demo/llava", "") if part == "llava" else ("demo/stable_diffusion", part)
    assert STORED[part][1]["parameters"] == parameters(model, folder)


def flops(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops())


def test_a_count_holds_at_sizes_between_those_that_were_counted() -> None:
    unet = counts.build("unet", counts.PAPER["unet"]).eval()
    text = torch.empty(1, 231, 768, device="meta")
    real = flops(unet, torch.empty(1, 4, 48, 48, device="meta"), torch.zeros(1, device="meta"), text)
    terms = zip(STORED["unet"][0]["forward"], unet_terms(48, 231), strict=True)
    assert sum(c * t for c, t in terms) == pytest.approx(real, rel=1e-6)


def test_a_step_of_stable_diffusion_at_512_pixels_is_what_is_published() -> None:
    found = models(build(Job, {"name": "x"}, "x"))
    assert found.denoise(64) == pytest.approx(0.80e12, rel=0.01)  # 401 billion multiplications with additions
    assert sum(c * t for c, t in zip(STORED["vae"][0]["encode"], side_terms(64), strict=True)) == found.encode(64)


@pytest.mark.parametrize(
    ("network", "size"), [("ConvNet-3", 32), ("ConvNet-6", 224), ("ResNetAP-10", 224), ("ResNet-18", 224)]
)
def test_the_networks_that_judge_are_counted_without_being_built(network: Network, size: int) -> None:
    with torch.device("meta"):
        built = build_classifier(network, num_classes=100, input_size=size, width=64, seed=0, norm="batch").eval()
    real = flops(built, torch.empty(1, 3, size, size, device="meta"))
    assert classify(network, size, 64, 100) == pytest.approx(real, rel=1e-3)
