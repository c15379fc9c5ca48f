"""Count the memory and the operations of a captioner from its config.json, without loading a library or a weight.

LLaVA-1.5 and the demo's model were counted on the models themselves (`flops`, `memory`); this is for all others. The
operations are those of a photograph of `PHOTO` pixels. A multiplication and an addition are two operations.
"""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from vlcp_ray.models import pretrained
from vlcp_ray.models.families import CAPTIONERS, LLAVA

#: Width and height of a usual photograph of ImageNet.
PHOTO: Final = (500, 375)
_HALF: Final = 2  # bytes of a number
_QWEN: Final = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
_IDEFICS: Final = ("idefics3", "smolvlm")
_ANYRES: Final = ("llava_next", "llava_onevision")
_TILES_ALONG: Final = 4  # to which Idefics3's processor enlarges the longer side of an image
_MARKS: Final = 3  # tokens around each tile of Idefics3
_MERGE: Final = 2  # patches along each side of a token of Qwen2-VL
#: What config.json leaves out, as transformers' classes of the language models and vision towers have it.
_TEXT: Final[Mapping[str, Mapping[str, int]]] = {
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
_VISION: Final[Mapping[str, int]] = {
    "hidden_size": 1280,
    "depth": 32,
    "intermediate_size": 3420,
    "patch_size": 14,
    "mlp_ratio": 4,
}


class Count(NamedTuple):
    """What a captioner needs; NaN for what is not known of its family.

    Args:
        parameters: of all its parts.
        linear: those in the linear layers that 8 bits can hold, without the output layer.
        token_bytes: of the keys and values of a token in half precision.
        image: operations of the vision tower for an image.
        image_tokens: tokens of an image in the language model.
        token: operations of the language model for a token.
        token_pair: operations of its attention for a pair of tokens.
        head: operations of the output layer for a token.
    """

    parameters: float
    linear: float
    token_bytes: float
    image: float
    image_tokens: float
    token: float
    token_pair: float
    head: float


def count_model(model: str, max_pixels: int = 0) -> Count | None:
    """Count a captioner whose config is here; None for another, and for LLaVA-1.5, which was counted itself.

    Args:
        model: hub id, folder or demo/<name>; of the hub its config is read from the cache, or from `captioners.json`.
        max_pixels: of an image, as `caption.max_pixels`.
    """
    config = read_config(model)
    if config is None or config.get("model_type") not in CAPTIONERS or config["model_type"] == LLAVA:
        return None
    try:
        return count(config, max_pixels)
    except KeyError:  # a config that leaves out what is not known here
        return None


def read_config(model: str) -> dict[str, Any] | None:
    """Read the config.json of a model from its folder, the hub's cache or this package; None where it is in none."""
    place: Any = Path(pretrained.folder(model)).expanduser() / "config.json"
    name = pretrained.hub_id(model)
    if name:
        from huggingface_hub import try_to_load_from_cache

        place = try_to_load_from_cache(name, "config.json", revision=pretrained.revision(model))
        if not isinstance(place, str):
            return known_configs().get(name)
    if not Path(place).exists():
        return None
    config: dict[str, Any] = json.loads(Path(place).read_text(encoding="utf-8"))
    return config


@cache
def known_configs() -> dict[str, dict[str, Any]]:
    """Return the configs of the models of `jobs/README.md`, as far as they are needed here, by hub id."""
    path = Path(__file__).with_name("captioners.json")
    configs: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return configs


def count(config: Mapping[str, Any], max_pixels: int = 0) -> Count:
    """Count a model from the content of its config.json.

    Raises:
        KeyError: it leaves out a size whose default is not known here.
    """
    text = _text(config)
    vision = _vision(config)
    layers, hidden, heads = text["num_hidden_layers"], text["hidden_size"], text["num_attention_heads"]
    head_size = text.get("head_dim") or hidden // heads
    keys = text.get("num_key_value_heads") or heads
    attention = hidden * head_size * (2 * heads + 2 * keys)
    experts = text.get("num_experts") or 0
    inner = 3 * hidden * (text["moe_intermediate_size"] if experts else text["intermediate_size"])
    used = experts and text["num_experts_per_tok"]
    linear = layers * (attention + inner * (experts or 1))
    active = layers * (attention + inner * (used or 1))
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    words = hidden * text["vocab_size"]
    seen, tokens = _image(config, vision, max_pixels)
    return Count(
        parameters=linear + words * (1 if tied else 2) + vision.weights,
        linear=linear + vision.linear,
        token_bytes=2 * _HALF * layers * keys * head_size,
        image=seen * 2 * vision.linear + _pairs(config, vision, seen) * 4 * vision.hidden * vision.layers,
        image_tokens=tokens,
        token=2 * active,
        token_pair=4 * heads * head_size * layers,
        head=2 * words,
    )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config") or config  # the first Qwen2-VL has its language model's settings at the top
    return {**_TEXT.get(text.get("model_type", ""), {}), **text}


class _Tower(NamedTuple):
    hidden: int
    layers: int
    linear: float  # parameters, with those of the projector
    weights: float  # the same with the embeddings
    patch: int
    side: int  # of a tile, in pixels


def _vision(config: Mapping[str, Any]) -> _Tower:
    """Return the sizes of the vision tower."""
    vision, family, width = config["vision_config"], config["model_type"], _text(config)["hidden_size"]
    if family in _QWEN:
        vision = {**_VISION, **vision}
        hidden = vision["embed_dim"] if "embed_dim" in vision else vision["hidden_size"]
        layers = vision["depth"]
        if family == "qwen2_vl":
            inner = 2 * hidden * hidden * vision["mlp_ratio"]
        else:
            inner = (3 if family == "qwen2_5_vl" else 2) * hidden * vision["intermediate_size"]
        merged = hidden * vision.get("spatial_merge_size", _MERGE) ** 2
        projector = merged * merged + merged * width
        planes = 3 * vision.get("temporal_patch_size", 2)
        side = 0
    else:
        hidden, layers = vision["hidden_size"], vision["num_hidden_layers"]
        inner = 2 * hidden * vision["intermediate_size"]
        planes, side = 3, vision["image_size"]
        if family in _IDEFICS:
            projector = hidden * config.get("scale_factor", 2) ** 2 * width
        else:
            projector = hidden * width + width * width
    linear = layers * (4 * hidden * hidden + inner) + projector
    patch = vision["patch_size"]
    places = 0 if family in _QWEN else (side // patch) ** 2
    return _Tower(hidden, layers, linear, linear + planes * patch**2 * hidden + places * hidden, patch, side)


def _image(config: Mapping[str, Any], vision: _Tower, max_pixels: int) -> tuple[float, float]:
    """Return the patches that the vision tower sees of a photograph, and the tokens that the language model reads."""
    factor = min(1.0, math.sqrt(max_pixels / (PHOTO[0] * PHOTO[1]))) if max_pixels else 1.0
    size = [side * factor for side in PHOTO]
    family = config["model_type"]
    if family in _QWEN:
        unit = vision.patch * config["vision_config"].get("spatial_merge_size", _MERGE)
        tokens = math.prod(max(1, round(side / unit)) for side in size)
        return tokens * (unit // vision.patch) ** 2, tokens
    if family in _IDEFICS:
        most = _TILES_ALONG * vision.side
        if max_pixels:
            most = min(most, max(1, math.isqrt(max_pixels) // vision.side) * vision.side)
        tiles = math.prod(math.ceil(side / max(size) * most / vision.side) for side in size)
        tiles += tiles > 1  # and the whole image
        patches = (vision.side // vision.patch) ** 2
        return tiles * patches, tiles * (patches // config.get("scale_factor", 2) ** 2 + _MARKS)
    if family in _ANYRES:
        patches = (vision.side // vision.patch) ** 2
        tiles, share = _anyres(config["image_grid_pinpoints"], size, vision.side)
        return (1 + tiles) * patches, patches + tiles * patches * share
    return math.nan, math.nan


def _anyres(places: Any, size: list[float], side: int) -> tuple[int, float]:
    """Return into how many tiles an image is cut, and the share of their area that the image fills.

    The resolution is the one that shows the most of the image's pixels, then the smallest, as in transformers.
    """
    best, tiles, share = (-1.0, 0.0), 1, 1.0
    for height, width in places:
        scale = min(width / size[0], height / size[1])
        shown = min(size[0] * size[1], math.prod(size) * scale**2)
        wasted = width * height - shown
        if (shown, -wasted) > best:
            best = (shown, -wasted)
            tiles = round(width / side) * round(height / side)
            share = math.prod(size) * scale**2 / (width * height)
    return tiles, share


def _pairs(config: Mapping[str, Any], vision: _Tower, patches: float) -> float:
    """Count the pairs of patches that attend to each other: of the image for Qwen, of a tile for others."""
    if config["model_type"] in _QWEN:
        return patches**2
    tile = (vision.side // vision.patch) ** 2
    return patches * tile
