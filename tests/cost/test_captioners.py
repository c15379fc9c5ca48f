"""Tests of the counts of captioners, from their configs, against the models themselves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.tiny_captioners import FAMILIES, WIDTH
from vlcp_ray.config import Job
from vlcp_ray.cost.captioners import _tiles, count, count_model, known_configs
from vlcp_ray.cost.flops import model_flops
from vlcp_ray.cost.memory import ModelMemory
from vlcp_ray.models.families import CAPTIONERS, LLAVA
from vlcp_ray.settings import build


@pytest.mark.parametrize("family", FAMILIES)
def test_count_of_a_family_equals_its_tiny_model(family: str) -> None:
    """Without biases and norms, which are a few percent of models this small, and parts in a thousand of real ones."""
    with torch.device("meta"):
        model, _ = FAMILIES[family]()
    found = count(model.config.to_dict())
    weights = {name: weight.numel() for name, weight in model.named_parameters() if weight.ndim > 1}
    assert found.parameters == pytest.approx(sum(weights.values()), rel=0.02)
    linear = {
        name: module.weight.numel() for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    del linear["lm_head"]
    assert found.linear == pytest.approx(sum(linear.values()), rel=0.02)
    assert found.token_bytes == 2 * 2 * 2 * 1 * (WIDTH // 2)  # keys and values, half precision, layers, heads, width
    assert found.token == pytest.approx(2 * sum(linear[name] for name in linear if "layers" in name and _is_text(name)))


@pytest.mark.parametrize("family", [family for family in CAPTIONERS if family != LLAVA])
def test_count_of_every_family_equals_the_model_of_its_default_config(family: str) -> None:
    """The defaults of transformers' config classes are models of 3 to 75 billion parameters."""
    config = transformers.AutoConfig.for_model(family)
    if family in ("idefics3", "smolvlm"):
        config.text_config.pad_token_id = 0  # the default is beyond the vocabulary
    found = count(config.to_dict())
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    weights = sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)
    linear = {name: one.weight.numel() for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    assert found.parameters == pytest.approx(weights, rel=0.01)
    assert found.linear == pytest.approx(sum(linear.values()) - linear["lm_head"], rel=0.01)
    assert all(math.isfinite(number) and number > 0 for number in found)


def _is_text(name: str) -> bool:
    return "language_model" in name or "text_model" in name


@pytest.mark.parametrize("model", known_configs())
def test_known_models_have_memory_and_operations_in_the_estimate(model: str) -> None:
    job = build(Job, {"name": "x", "caption": {"model": model}}, "x")
    memory, flops = ModelMemory.for_job(job), model_flops(job)
    one, many = memory.caption(False, 0), memory.caption(False, 16 * 2048)
    assert 0.4 < one < 60
    assert one < many < one + 8
    assert memory.caption(True, 0) < (1 if "A3B" in model else 0.85) * one  # experts stay in half precision
    assert 1e11 < flops.caption(job.caption.prompt, 100) < 1e14
    small = build(Job, {"name": "x", "caption": {"model": model, "max_pixels": 224 * 224}}, "x")
    assert model_flops(small).caption(job.caption.prompt, 100) <= flops.caption(job.caption.prompt, 100)


def test_every_family_has_a_model_that_is_known_without_its_files() -> None:
    models = {model for family, (_, model) in CAPTIONERS.items() if family != LLAVA}
    assert models <= set(known_configs())


def test_count_model_reads_a_folder_and_knows_no_other(tmp_path: Path) -> None:
    config: dict[str, Any] = known_configs()["Qwen/Qwen2.5-VL-3B-Instruct"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert count_model(str(tmp_path)) == count(config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "vision_config": {}}))
    assert count_model(str(tmp_path)) is None
    assert count_model("some/model") is None
    assert count_model("demo/llava") is None  # which was counted itself
    job = build(Job, {"name": "x", "caption": {"model": "some/model"}}, "x")
    assert math.isnan(ModelMemory.for_job(job).caption(False, 1))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (448, 448), (900, 900), (1000, 100)])
def test_tiles_of_internvl_are_those_of_its_processor(size: tuple[int, int]) -> None:
    processor = transformers.GotOcr2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=True)
    for most in (1, 4, 12):
        tiles = processor.get_number_of_image_patches(size[1], size[0], {"max_patches": most})
        assert _tiles(list(size), 448, most) == tiles


def test_config_with_sizes_in_another_form_is_not_counted(tmp_path: Path) -> None:
    """An estimate must not end a run."""
    for vision in ({"patch_size": 0}, {"patch_size": "14"}, {"num_hidden_layers": None}, {"image_size": []}):
        config: dict[str, Any] = json.loads(json.dumps(known_configs()["llava-hf/llava-v1.6-mistral-7b-hf"]))
        config["vision_config"] |= vision
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = count_model(str(tmp_path))
        assert found is None or vision == {"patch_size": "14"}
        job = build(Job, {"name": "x", "caption": {"model": str(tmp_path)}}, "x")
        assert math.isnan(ModelMemory.for_job(job).caption(False, 1)) == (found is None)


def test_photograph_has_fewer_tokens_with_fewer_pixels() -> None:
    for model, config in known_configs().items():
        whole, small = (count(config, pixels).image_tokens for pixels in (0, 28 * 28 * 64))
        assert 0 < small <= whole, model
    assert count(known_configs()["Qwen/Qwen2.5-VL-7B-Instruct"]).image_tokens == 18 * 13
