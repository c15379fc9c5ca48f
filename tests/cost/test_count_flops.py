"""Tests of the counter: the stored counts are those of the models at their real sizes, and hold at other sizes."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlcp_ray.config import Job
from vlcp_ray.cost import count_flops
from vlcp_ray.cost.flops import model_flops, side_terms, unet_terms
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.models.pretrained import count_parameters
from vlcp_ray.settings import build

STORED = json.loads(Path(count_flops.__file__).with_name("counts.json").read_text())
HUB = {
    "unet": ("benjamin-paine/stable-diffusion-v1-5", "unet"),
    "vae": ("benjamin-paine/stable-diffusion-v1-5", "vae"),
    "text_encoder": ("benjamin-paine/stable-diffusion-v1-5", "text_encoder"),
    "llava": ("llava-hf/llava-1.5-7b-hf", ""),
    "transformer": ("facebook/DiT-XL-2-256", "transformer"),
}
DEMO = {"llava": ("demo/llava", ""), "transformer": ("demo/dit", "transformer")}


def torch_flops(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops())


@pytest.fixture(scope="module")
def counted() -> dict[str, list[count_flops.Count]]:
    return count_flops.counts()


@pytest.mark.parametrize("part", HUB)
def test_counts_equal_the_stored_counts(part: str, counted: dict[str, list[count_flops.Count]]) -> None:
    assert counted[part][0]["parameters"] == count_parameters(*HUB[part])
    for count, stored in zip(counted[part], STORED[part], strict=True):
        assert count.keys() == stored.keys()
        assert all(count[name] == pytest.approx(stored[name], rel=1e-6, abs=1.0) for name in stored)
    assert counted.keys() == STORED.keys()


def test_config_of_leaves_out_what_is_no_setting() -> None:
    config = count_flops.config_of("demo/stable_diffusion", "vae")
    assert config["latent_channels"] == 4
    assert not config.keys() & {"_name_or_path", "architectures"}
    assert count_flops.config_of("demo/llava", "")["model_type"] == "llava"


@pytest.mark.parametrize("part", HUB)
def test_stored_count_of_the_demo_has_the_parameters_of_the_packaged_model(part: str) -> None:
    model, folder = DEMO.get(part, ("demo/stable_diffusion", part))
    assert STORED[part][1]["parameters"] == count_parameters(model, folder)


def test_unet_count_at_a_size_that_was_not_counted_equals_torchs_count() -> None:
    unet = count_flops.build("unet", count_flops.PAPER["unet"]).eval()
    text = torch.empty(1, 231, 768, device="meta")
    expected = torch_flops(unet, torch.empty(1, 4, 48, 48, device="meta"), torch.zeros(1, device="meta"), text)
    terms = zip(STORED["unet"][0]["forward"], unet_terms(48, 231), strict=True)
    assert sum(c * t for c, t in terms) == pytest.approx(expected, rel=1e-6)


def test_denoise_at_512_pixels_equals_the_published_figure() -> None:
    flops = model_flops(build(Job, {"name": "x"}, "x"))
    assert flops.denoise(64) == pytest.approx(0.80e12, rel=0.01)  # 401 billion multiplications with additions
    assert sum(c * t for c, t in zip(STORED["vae"][0]["encode"], side_terms(64), strict=True)) == flops.encode(64)


@pytest.mark.parametrize(
    ("network", "size"), [("ConvNet-3", 32), ("ConvNet-6", 224), ("ResNetAP-10", 224), ("ResNet-18", 224)]
)
def test_classify_equals_the_count_of_the_built_network(network: str, size: int) -> None:
    with torch.device("meta"):
        built = build_classifier(network, num_classes=100, input_size=size, width=64, seed=0, norm="batch").eval()
    expected = torch_flops(built, torch.empty(1, 3, size, size, device="meta"))
    flops = model_flops(build(Job, {"name": "x"}, "x")).classify(network, size, 64, 100, "batch")
    assert flops == pytest.approx(expected, rel=1e-3)
