"""Tests of the counted memory: the stored counts are those of the models, at their real sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlcp_ray.cost import count_memory
from vlcp_ray.cost.count_flops import PAPER, config_of
from vlcp_ray.cost.count_memory import PeakMemory, count_dit, count_llava, count_unet, count_vae

STORED = json.loads(Path(count_memory.__file__).with_name("memory.json").read_text())


def assert_equal(counted: dict[str, Any], stored: dict[str, Any]) -> None:
    assert all(counted[name] == pytest.approx(stored[name], rel=1e-3) for name in counted)


def test_stored_memory_of_the_papers_models_in_inference_is_counted_at_512_pixels() -> None:
    assert_equal(count_vae(PAPER["vae"], 64), STORED["vae"][0])
    counted = count_unet(PAPER["unet"], 64, trains={})
    assert counted.keys() == {"parameters", "denoise"}
    assert_equal(counted, STORED["unet"][0])
    assert_equal(count_llava(PAPER["llava"]), STORED["llava"][0])


def test_stored_memory_of_the_demo_is_counted_in_training() -> None:
    counted = count_unet(config_of("demo/stable_diffusion", "unet"), 8, trains={"kept": False})
    assert counted.keys() | {"recomputed"} == STORED["unet"][1].keys()
    assert_equal(counted.pop("lora"), STORED["unet"][1]["lora"])
    assert_equal(counted, STORED["unet"][1])
    for stored in STORED["unet"]:
        assert stored["recomputed"][1] < 0.5 * stored["kept"][1]
    assert_equal(count_vae(config_of("demo/stable_diffusion", "vae"), 8), STORED["vae"][1])
    assert_equal(count_llava(config_of("demo/llava", "")), STORED["llava"][1])


def test_peak_memory_adds_up_what_is_alive() -> None:
    kept = torch.zeros(100)
    with PeakMemory() as memory:
        memory.add([kept, kept[:50]])
        assert memory.live == 400
        first = torch.zeros(1000)
        view = first[:10]
        assert (memory.live, memory.peak) == (4400, 4400)
        del first
        assert memory.live == 4400  # the view needs all of it
        del view
        second = torch.zeros(500) + 1
        assert memory.peak == 4400
        assert memory.live == 400 + 2000
        del second
    assert memory.live == 400


def test_stored_memory_of_the_dits_is_counted_in_inference_and_of_the_demo_in_training() -> None:
    paper = count_dit(PAPER["transformer"], 32, trains={})
    assert_equal(paper, STORED["transformer"][0])
    assert paper["weights"] < 4 * paper["parameters"]  # the blocks share their embeddings
    demo = count_dit(config_of("demo/dit", "transformer"), 4, trains={"kept": False})
    assert demo.keys() | {"recomputed"} == STORED["transformer"][1].keys()
    assert_equal(demo, STORED["transformer"][1])
    for stored in STORED["transformer"]:
        assert stored["recomputed"][1] < 0.5 * stored["kept"][1]
        assert stored["weights"] < stored["kept"][0] < 1.2 * stored["weights"]  # few weights are trained
