"""Count the memory and the operations of a captioner from its config.json, without loading a library or a weight.

LLaVA-1.5 and the demo's model were counted on the models themselves (`flops`, `memory`); this is for all others. The
operations are those of an image, by default a photograph of `PHOTO` pixels. A multiplication and an addition are two
operations.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from vlcp_ray.models import pretrained
from vlcp_ray.models.families import CAPTIONERS, LLAVA, read_json

#: Width and height of a usual photograph of ImageNet.
PHOTO: Final = (500, 375)
_HALF: Final = 2  # bytes of a number
_QWEN3: Final = ("qwen3_vl", "qwen3_vl_moe")
_QWEN: Final = ("qwen2_vl", "qwen2_5_vl", *_QWEN3)
_WHOLE: Final = (*_QWEN, "glm4v", "mistral3", "lfm2_vl")  # see an image whole, and in its own size
_IDEFICS: Final = ("idefics3", "smolvlm")
_ANYRES: Final = ("llava_next", "llava_onevision")
_TILES_ALONG: Final = 4  # to which Idefics3's processor enlarges the longer side of an image
_MARKS: Final = 3  # tokens around each tile of Idefics3
_MERGE: Final = 2  # patches along each side of a token of Qwen2-VL
_DEEPSTACK: Final = (8, 16, 24)  # inner layers whose outputs Qwen3-VL's language model gets as well
_MOST_TILES: Final = 12  # of InternVL's processor
_LFM2_TOKENS: Final = (64, 256)  # the fewest and the most of a tile of LFM2-VL
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
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "tie_word_embeddings": True,
    },
    "lfm2": {"block_auto_adjust_ff_dim": True, "block_multiple_of": 256, "tie_word_embeddings": True},
}
_QWEN_VISION: Final = {"hidden_size": 1280, "depth": 32, "intermediate_size": 3420, "patch_size": 14, "mlp_ratio": 4}
_VISION: Final[Mapping[str, Mapping[str, int]]] = {
    **dict.fromkeys(_QWEN, _QWEN_VISION),
    "glm4v": {"image_size": 336, "patch_size": 14},
    "lfm2_vl": {"num_patches": 256},
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


def count_model(model: str, max_pixels: int = 0, image: tuple[int, int] = PHOTO) -> Count | None:
    """Count a captioner whose config is here; None for another, and for LLaVA-1.5, which was counted itself.

    Args:
        model: hub id, folder or demo/<name>; of the hub its config is read from the cache, or from `captioners.json`.
        max_pixels: of an image, as `caption.max_pixels`.
        image: width and height of an image in pixels.
    """
    configs = (read_config(model), known_configs().get(pretrained.hub_id(model)))
    counts = (_count_known(config, max_pixels, image) for config in configs if config)
    return next((found for found in counts if found), None)


def _count_known(config: Mapping[str, Any], max_pixels: int, image: tuple[int, int]) -> Count | None:
    if config.get("model_type") not in CAPTIONERS or config["model_type"] == LLAVA:
        return None
    try:
        return count(config, max_pixels, image)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):  # it leaves something out
        return None


def read_config(model: str) -> dict[str, Any] | None:
    """Read the config.json of a model from its folder or the hub's cache, or from this package; None without one."""
    path = pretrained.find(model, "config.json")
    return read_json(path) if path else known_configs().get(pretrained.hub_id(model))


@cache
def known_configs() -> dict[str, dict[str, Any]]:
    """Return the configs of the models of `jobs/README.md`, as far as they are needed here, by hub id."""
    path = Path(__file__).with_name("captioners.json")
    configs: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return configs


def count(config: Mapping[str, Any], max_pixels: int = 0, image: tuple[int, int] = PHOTO) -> Count:
    """Count a model from the content of its config.json.

    Raises:
        KeyError: it leaves out a size whose default is not known here.
    """
    text = _text(config)
    vision = _vision(config)
    layers, hidden, heads = text["num_hidden_layers"], text["hidden_size"], text["num_attention_heads"]
    head_size = text.get("head_dim") or hidden // heads
    keys = text.get("num_key_value_heads") or heads
    attending = _attending(text)
    # Layers of LFM2 that do not attend are convolutions between two linear layers.
    mixing = attending * hidden * head_size * (2 * heads + 2 * keys) + (layers - attending) * 4 * hidden**2
    experts = text.get("num_experts") or text.get("num_local_experts") or 0
    inner = 3 * hidden * (text["moe_intermediate_size"] if experts else _inner_size(text))
    used = experts and text["num_experts_per_tok"]
    every, active = (mixing + layers * inner * (count or 1) for count in (experts, used))
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    words = hidden * text["vocab_size"]
    seen, tokens = _image(config, vision, max_pixels, image)
    return Count(
        parameters=every + words * (1 if tied else 2) + vision.weights,
        linear=(mixing if experts else every) + vision.linear,  # experts are no linear layers
        token_bytes=2 * _HALF * attending * keys * head_size,
        image=seen * 2 * vision.linear + _pairs(config, vision, seen) * 4 * vision.hidden * vision.layers,
        image_tokens=tokens,
        token=2 * active,
        token_pair=4 * heads * head_size * attending,
        head=2 * words,
    )


def _attending(text: Mapping[str, Any]) -> int:
    """Count the layers with attention: those of LFM2 that are listed, all of other models."""
    layers: int = text["num_hidden_layers"]
    kinds: Sequence[str] = text.get("layer_types") or ()
    if kinds:
        return layers - kinds.count("conv")
    return len(text["full_attn_idxs"]) if text.get("full_attn_idxs") else layers


def _inner_size(text: Mapping[str, Any]) -> int:
    """Return the width of the layers between attentions; that of LFM2 is two thirds of the one that it gives."""
    size = int(text.get("block_ff_dim") or text["intermediate_size"])
    if not text.get("block_auto_adjust_ff_dim"):
        return size
    size = int(text.get("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3))
    unit: int = text["block_multiple_of"]
    return math.ceil(size / unit) * unit


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config") or config  # the first Qwen2-VL has its language model's settings at the top
    return {**_TEXT.get(text.get("model_type", ""), {}), **text}


class _Tower(NamedTuple):
    hidden: int
    layers: int
    linear: float  # parameters of its linear layers, with those of the projector
    weights: float  # all, with those of the projector
    patch: int
    side: int  # of a tile, in pixels


def _vision(config: Mapping[str, Any]) -> _Tower:
    """Return the sizes of the vision tower."""
    family = config["model_type"]
    vision = {**_VISION.get(family, {}), **config["vision_config"]}
    patch, side = _first(vision["patch_size"]), _first(vision.get("image_size", 0))
    layers = vision["depth"] if "depth" in vision else vision["num_hidden_layers"]
    hidden = vision["embed_dim"] if "embed_dim" in vision else vision["hidden_size"]
    tower, projector = layers * (4 * hidden**2 + _inner(config, vision, hidden)), _projector(config, vision, hidden)
    planes = 3 * vision.get("temporal_patch_size", 2) if family in (*_QWEN, "glm4v") else 3
    places = 0 if family in (*_QWEN, "mistral3") else vision.get("num_patches", (side // patch) ** 2)
    weights = tower + projector + planes * patch**2 * hidden + places * hidden
    linear = tower if family == "gemma3" else tower + projector  # which is no linear layer there
    return _Tower(hidden, layers, linear, weights, patch, side)


def _inner(config: Mapping[str, Any], vision: Mapping[str, Any], hidden: int) -> int:
    """Count the parameters between two attentions of the vision tower."""
    family = config["model_type"]
    if family == "qwen2_vl":
        return int(2 * hidden**2 * vision["mlp_ratio"])
    size = _text(config)["hidden_size"] if family == "glm4v" else vision["intermediate_size"]
    return int((3 if family in ("qwen2_5_vl", "glm4v", "mistral3") else 2) * hidden * size)


def _projector(config: Mapping[str, Any], vision: Mapping[str, Any], hidden: int) -> int:
    """Count the parameters between the vision tower and the language model."""
    family, width = config["model_type"], _text(config)["hidden_size"]
    merged = hidden * _merge(config) ** 2  # numbers of the patches of a token
    if family in _QWEN:  # those of Qwen3-VL have one for each of some inner layers too
        count = 1 + len(vision.get("deepstack_visual_indexes", _DEEPSTACK)) if family in _QWEN3 else 1
        return int(count * (merged**2 + merged * vision.get("out_hidden_size", width)))
    if family in _IDEFICS or family == "gemma3":
        return int(merged * width)
    if family == "mistral3":
        return int(merged * hidden + hidden * width + width**2)
    if family == "lfm2_vl":
        between = config.get("projector_hidden_size", width)
        return int(merged * between + between * width)
    gated = 3 * width * vision["intermediate_size"] if family == "glm4v" else 0
    return int(merged * width + width**2 + gated)


def _first(size: Any) -> int:
    """Return one side of a size, which is a number or a list of both sides."""
    return int(size[0] if isinstance(size, list | tuple) else size)


def _merge(config: Mapping[str, Any]) -> int:
    """Return how many patches along each side of it a token stands for; for Gemma 3 they are averaged."""
    family, vision = config["model_type"], config["vision_config"]
    if family in (*_QWEN, "glm4v"):
        return int(vision.get("spatial_merge_size", _MERGE))
    if family == "internvl":
        return int(1 / config.get("downsample_ratio", 1 / _MERGE))
    name = {"mistral3": "spatial_merge_size", "lfm2_vl": "downsample_factor"}.get(family, "scale_factor")
    return int(config.get(name, _MERGE)) if family in (*_IDEFICS, *_WHOLE) else 1


def _image(config: Mapping[str, Any], vision: _Tower, max_pixels: int, image: tuple[int, int]) -> tuple[float, float]:
    """Return the patches that the vision tower sees of an image, and the tokens that the language model reads."""
    factor = min(1.0, math.sqrt(max_pixels / math.prod(image))) if max_pixels else 1.0
    size = [side * factor for side in image]
    family, merge = config["model_type"], _merge(config)
    if family in _WHOLE:
        round_up = math.ceil if family == "mistral3" else round
        columns, rows = (max(1, round_up(side / (vision.patch * merge))) for side in size)
        tokens = columns * rows
        if family == "lfm2_vl":
            tokens = min(max(tokens, _LFM2_TOKENS[0]), _LFM2_TOKENS[1])
        return tokens * merge**2, tokens + rows * (family == "mistral3")  # which ends each row with a token
    patches = (vision.side // vision.patch) ** 2
    if family == "gemma3":
        return patches, config.get("mm_tokens_per_image", 256)
    if family == "internvl":
        most = min(_MOST_TILES, max(1, max_pixels // vision.side**2)) if max_pixels else _MOST_TILES
        tiles = _tiles(size, vision.side, most)
        return tiles * patches, tiles * (patches // merge**2)
    if family in _IDEFICS:
        longest = _TILES_ALONG * vision.side
        if max_pixels:
            longest = min(longest, max(1, math.isqrt(max_pixels) // vision.side) * vision.side)
        tiles = math.prod(math.ceil(side / max(size) * longest / vision.side) for side in size)
        tiles += tiles > 1  # and the whole image
        return tiles * patches, tiles * (patches // merge**2 + _MARKS)
    if family in _ANYRES:
        tiles, share = _anyres(config["image_grid_pinpoints"], size, vision.side)
        return (1 + tiles) * patches, patches + tiles * patches * share
    return math.nan, math.nan


def _tiles(size: list[float], side: int, most: int) -> int:
    """Count the tiles that InternVL's processor cuts an image into, with the one of the whole image.

    Their columns and rows have the ratio that is closest to the image's; of several the most that are not twice as
    large as the image.
    """
    grids = [(columns, tiles // columns) for tiles in range(1, most + 1) for columns in range(1, tiles + 1)]
    grids = [(columns, rows) for columns, rows in grids if columns * rows <= most]
    distance = min(abs(size[0] / size[1] - columns / rows) for columns, rows in grids)
    close = [columns * rows for columns, rows in grids if abs(size[0] / size[1] - columns / rows) == distance]
    tiles = max([min(close), *(count for count in close if math.prod(size) > side**2 * count / 2)])
    return tiles + (tiles > 1)


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
    """Count the pairs of patches that attend to each other: those of an image that is seen whole, or of a tile."""
    if config["model_type"] in _WHOLE:
        return patches**2
    tile = (vision.side // vision.patch) ** 2
    return patches * tile
