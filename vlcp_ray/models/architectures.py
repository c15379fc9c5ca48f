"""Recognise the parts of published base models by their configurations, without loading a library or a weight.

`architectures.json` has the configurations of Stable Diffusion 1.5, 2.1 and XL with the number of parameters of each
part, and what diffusers and transformers take for those settings that decide the sizes and are left out.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from vlcp_ray.models.families import SD, XL, BaseModels

#: The models of `architectures.json`: Stable Diffusion 1.5, whose parts the others share, 2.1 and XL.
NAMES: Final = ("1", "2", "xl")
FIRST: Final = NAMES[0]


class Published(NamedTuple):
    """A base model of the hub.

    Args:
        family: of it.
        name: of `NAMES`, whose parts it has.
        resolution: side in pixels that it was trained at.
    """

    family: BaseModels
    name: str
    resolution: int


#: The base models of jobs/README.md by hub id, for those whose files are not on this machine.
PUBLISHED: Final[Mapping[str, Published]] = {
    "benjamin-paine/stable-diffusion-v1-5": Published(SD, FIRST, 512),
    **{
        f"{owner}/stable-diffusion-{name}": Published(SD, "2", side)
        for owner in ("stabilityai", "sd2-community")
        for name, side in (("2", 768), ("2-base", 512), ("2-1", 768), ("2-1-base", 512))
    },
    "stabilityai/stable-diffusion-xl-base-1.0": Published(XL, "xl", 1024),
}


def own_configs(name: str) -> dict[str, Mapping[str, Any]]:
    """Return the configurations of those parts that a model of `NAMES` does not share with the first one."""
    return {part: entry["config"] for part, entry in _architectures()["models"][name].items()}


def parameters_of(part: str, config: Mapping[str, Any]) -> int | None:
    """Return the number of parameters of a part, if it has the sizes of a published one; else None.

    Args:
        part: unet, vae, text_encoder or text_encoder_2.
        config: the content of its config.json.
    """
    defaults = _architectures()["defaults"].get(part, {})
    sizes = [config.get(key, left_out) for key, left_out in defaults.items()]
    for models in _architectures()["models"].values():
        entry = models.get(part)
        if entry and sizes == [entry["config"].get(key, left_out) for key, left_out in defaults.items()]:
            return int(entry["parameters"])
    return None


def name_of(unet: int | None) -> str:
    """Return which of `NAMES` has a UNet of so many parameters; the first where none has."""
    models = _architectures()["models"]
    return next((name for name in NAMES if models[name]["unet"]["parameters"] == unet), FIRST)


def published_parameters(model: str, part: str) -> int | None:
    """Return the number of parameters of a part of one of `PUBLISHED`; None for another model or part."""
    found = PUBLISHED.get(model)
    if found is None or part not in ("unet", "vae", *found.family.text_encoders):
        return None
    models = _architectures()["models"]
    return int((models[found.name].get(part) or models[FIRST][part])["parameters"])


@cache
def _architectures() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name("architectures.json").read_text(encoding="utf-8"))
    return content
