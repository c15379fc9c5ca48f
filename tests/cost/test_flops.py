"""Tests of the operations of a job's models, looked up by the number of parameters."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import ModelFlops, model_flops, prompt_tokens, token_terms, too_long_note
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.models.pretrained import count_parameters, folder
from vlcp_ray.settings import build
from vlcp_ray.stages.ingest import Expect


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
    assert flops.classify("ResNet-18", 224, 0, 10, "batch") > 0


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


COUNTED = ModelFlops(
    unet={"forward": [1.0, 2.0, 3.0, 5.0, 7.0]},
    vae={"encode": [1.0, 10.0, 100.0], "decode": [2.0, 20.0, 200.0]},
    text={"slice": 11},
    llava={"image": 1000.0, "image_tokens": 4, "token": 10.0, "token_pair": 2.0, "head": 3.0},
)


def test_flops_of_unet_vae_and_text_are_polynomials_of_their_counts() -> None:
    # constant, pixels, pairs of pixels, pixels x tokens, tokens; a slice has 77 tokens
    assert COUNTED.denoise(2) == 1 + 2 * 4 + 3 * 16 + 5 * 4 * 77 + 7 * 77
    assert COUNTED.denoise(3, slices=2) == 1 + 2 * 9 + 3 * 81 + 5 * 9 * 154 + 7 * 154
    assert COUNTED.encode(3) == 1 + 10 * 9 + 100 * 81
    assert COUNTED.decode(3) == 2 + 20 * 9 + 200 * 81
    assert (COUNTED.embed_text(), COUNTED.embed_text(3)) == (11, 33)
    assert token_terms(6) == (6, 36)


def test_caption_flops_equal_hand_computation() -> None:
    # 4 tokens of the image, 10 of the chat and 1.4 for each of 5 words are read; the first answer token attends to
    # these 21, the last one to 21 + 10
    pairs = 21**2 + 10 * (21 + 31) / 2
    expected = 1000 + (21 + 10) * 10 + pairs * 2 + 10 * 3
    assert COUNTED.caption("five words and a bit", 10) == pytest.approx(expected)


def test_cost_inputs_have_a_slice_for_every_75_tokens_of_a_caption() -> None:
    job, images = make_job("demo/stable_diffusion", "demo/llava"), Expect(train=1, val=1, classes=1, gib=1)
    inputs = CostInputs.for_job(job, images)
    assert (inputs.caption_tokens, inputs.latent_shape(64), inputs.latent_side(64)) == (0, (4, 8, 8), 8)
    slices = {
        tokens: CostInputs.for_job(job, images, tokens).text_slices("text") for tokens in (0, 1, 75, 75.9, 76, 151)
    }
    assert slices == {0: 1, 1: 1, 75: 1, 75.9: 1, 76: 2, 151: 3}
    assert CostInputs.for_job(job, images, 500).text_slices("class_name") == 1


@pytest.mark.parametrize(
    ("model", "settings", "encode", "note"),
    [
        ("llava-hf/llava-v1.6-mistral-7b-hf", {}, {}, "500 x 500 pixels .* 2,9.* is 2,048: .*max_model_len=4096"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", {"max_model_len": 4096}, {}, ""),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", {}, {}, "500 x 500 pixels has about 3,6.*max_model_len=4096"),
        ("OpenGVLab/InternVL3-2B-hf", {}, {}, "500 x 375 pixels .* 3,3.* set caption.max_model_len=4096 or"),
        ("OpenGVLab/InternVL3-2B-hf", {"max_pixels": 448 * 448}, {}, ""),
        ("OpenGVLab/InternVL3-2B-hf", {"source": "captions.parquet"}, {}, ""),
        ("OpenGVLab/InternVL3-2B-hf", {}, {"train_resolution": 32}, ""),
        ("HuggingFaceTB/SmolVLM-500M-Instruct", {}, {"resolution": 32}, ""),
        ("HuggingFaceTB/SmolVLM-500M-Instruct", {"max_model_len": 1100}, {"resolution": 32}, "32 x 32 .* 1,1.*=2048"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", {}, {}, ""),
        ("some/model", {}, {}, ""),
        ("llava-hf/llava-1.5-7b-hf", {}, {}, ""),
    ],
)
def test_too_long_note_is_of_models_that_read_more_tokens_than_the_job_allows(
    model: str, settings: dict[str, object], encode: dict[str, int], note: str
) -> None:
    found = too_long_note(build(Job, {"name": "x", "caption": {"model": model, **settings}, "encode": encode}, "x"))
    assert bool(found) == bool(note)
    assert re.search(note, found)
