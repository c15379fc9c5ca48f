"""Tests of the operations of a job's models, looked up by the number of parameters."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import model_flops, prompt_tokens
from vlcp_ray.models.pretrained import count_parameters, folder
from vlcp_ray.settings import build


def make_job(base_model: str, captioner: str) -> Job:
    return build(Job, {"name": "x", "base_model": base_model, "caption": {"model": captioner}}, "x")


def test_model_flops_of_a_copied_model_equal_those_of_the_original(tmp_path: Path) -> None:
    shutil.copytree(folder("demo/llava"), tmp_path / "llava")
    copied = model_flops(make_job("demo/stable_diffusion", str(tmp_path / "llava")))
    assert copied == model_flops(make_job("demo/stable_diffusion", "demo/llava"))
    assert copied.llava is not None


def test_model_flops_of_an_uncounted_model_are_nan() -> None:
    flops = model_flops(make_job("some/model", "other/model"))
    assert math.isnan(flops.denoise(64))
    assert math.isnan(flops.encode(64))
    assert math.isnan(flops.decode(64))
    assert math.isnan(flops.embed_text())
    assert math.isnan(flops.caption("What is it?", 60))
    assert flops.classify("ResNet-18", 224, 0, 10) > 0


def test_caption_flops_grow_with_the_prompt_and_faster_than_its_length() -> None:
    flops = model_flops(make_job("demo/stable_diffusion", "demo/llava"))
    assert flops.caption("two words", 60) < flops.caption("now there are five words", 60)
    short, long, longer = (flops.caption("two words", answer) for answer in (0, 1000, 2000))
    assert longer - long > long - short  # a token attends to all before it


def test_prompt_tokens_count_words_and_the_chat_form() -> None:
    assert prompt_tokens("") == 10
    assert prompt_tokens("five words and a bit") == pytest.approx(10 + 5 * 1.4)


def test_count_parameters_of_a_folder_counts_scalars_and_skips_metadata(tmp_path: Path) -> None:
    save_file(
        {"a": np.zeros((2, 3), np.float16), "b": np.zeros((), np.float32)}, tmp_path / "1.safetensors", {"x": "y"}
    )
    save_file({"c": np.zeros(5, np.float32)}, tmp_path / "2.safetensors")
    assert count_parameters(str(tmp_path), "") == 12
    assert count_parameters(str(tmp_path / "none"), "") is None
