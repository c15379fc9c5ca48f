"""Tests of the recognition of published base models by their configurations."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from vlcp_ray.cost import memory
from vlcp_ray.models import architectures
from vlcp_ray.models.architectures import NAMES, name_of, own_configs, parameters_of

CONTENT = json.loads(Path(architectures.__file__).with_suffix(".json").read_text())
COUNTED = json.loads(Path(memory.__file__).with_name("counts.json").read_text())


def every_config() -> list[tuple[str, Mapping[str, Any]]]:
    return [(part, config) for name in NAMES for part, config in own_configs(name).items()]


def test_every_part_is_recognised_with_the_parameters_that_were_counted() -> None:
    sizes = [(part, parameters_of(part, config)) for part, config in every_config()]
    assert len(sizes) == 7
    assert None not in dict(sizes).values()
    assert all(size in [count["parameters"] for count in COUNTED[part]] for part, size in sizes)


@pytest.mark.parametrize("part", CONTENT["defaults"])
def test_what_is_left_out_is_as_the_library_has_it(part: str) -> None:
    if part.startswith("text_encoder"):
        real = {name: getattr(CLIPTextConfig(), name) for name in CONTENT["defaults"][part]}
    else:
        kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
        parameters = inspect.signature(kind.__init__).parameters
        real = {name: parameters[name].default for name in CONTENT["defaults"][part]}
    as_json = {name: list(value) if isinstance(value, tuple) else value for name, value in real.items()}
    assert as_json == CONTENT["defaults"][part]


def test_a_part_of_another_size_is_not_recognised() -> None:
    for part, config in every_config():
        for name, value in CONTENT["defaults"][part].items():
            changed = config | {name: "another" if config.get(name, value) is None else None}
            assert parameters_of(part, changed) is None, (part, name)
    assert parameters_of("transformer", {}) is None


def test_settings_that_decide_no_size_are_not_looked_at() -> None:
    for part, config in every_config():
        assert parameters_of(part, config | {"sample_size": 7, "scaling_factor": 0.5}) == parameters_of(part, config)


def test_name_of_is_that_of_the_models_whose_unet_has_so_many_parameters() -> None:
    for name in NAMES:
        assert name_of(parameters_of("unet", own_configs(name)["unet"])) == name
    assert name_of(1) == name_of(None) == "1"
