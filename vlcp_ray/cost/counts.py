"""Knows how the arithmetic of a model is counted: `python -m vlcp_ray.cost.counts > vlcp_ray/cost/counts.json`.

The models are built from their configurations on torch's meta device, which holds shapes and no numbers, and run under
torch's own counter (`torch.utils.flop_counter`): a multiplication and an addition are two operations; convolutions,
matrix products and attention count, what works on single elements does not.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlcp_ray.config import Network
from vlcp_ray.cost.work import TEXT_TOKENS, pair_terms, side_terms, unet_terms
from vlcp_ray.models.folders import folder

PAPER: Final[Mapping[str, Mapping[str, Any]]] = json.loads(
    Path(__file__).with_name("paper.json").read_text(encoding="utf-8")
)
_RESNETS: Final[tuple[Network, ...]] = ("ResNet-18", "ResNet-18-modified", "ResNetAP-10")
_SIDE: Final = 224
_SIDES: Final = (16, 32, 64)  # of latents; every pooling of the models divides them
_LENGTHS: Final = (64, 128, 256)  # tokens

Count = dict[str, Any]


def build(part: str, settings: Mapping[str, Any], device: str = "meta") -> Any:
    """A model with random weights, or on `meta` with none.

    Args:
        part: unet, vae, text_encoder or llava.
        settings: its config.json.
    """
    import diffusers
    import transformers

    with torch.device(device):
        if part == "unet":
            return diffusers.UNet2DConditionModel.from_config(dict(settings))
        if part == "vae":
            return diffusers.AutoencoderKL.from_config(dict(settings))
        if part == "text_encoder":
            return transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))
        return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**settings))


def count(part: str, settings: Mapping[str, Any]) -> Count:
    """The parameters of a model and the coefficients of its operations, by what is done with it."""
    model = build(part, settings).eval()
    return {"parameters": sum(p.numel() for p in model.parameters()), **_COUNTED[part](model)}


def count_network(name: Network) -> float:
    """Operations of a ResNet's forward pass for each pixel of its input; its layers grow with the image's area."""
    from vlcp_ray.models.classifiers import build_classifier

    with torch.device("meta"):
        network = build_classifier(name, num_classes=1, input_size=_SIDE, width=0, seed=0, norm="batch")
    return _flops(lambda: network.eval()(torch.empty(1, 3, _SIDE, _SIDE, device="meta"))) / _SIDE**2


def counts() -> dict[str, Any]:
    """Of the paper's models, the demo's, and the networks that judge."""
    found: dict[str, list[Count]] = {part: [count(part, settings)] for part, settings in PAPER.items()}
    for part in ("unet", "vae", "text_encoder"):
        found[part].append(count(part, config_of("demo/stable_diffusion", part)))
    found["llava"].append(count("llava", config_of("demo/llava", "")))
    return {**found, "networks": {name: count_network(name) for name in _RESNETS}}


def config_of(model: str, part: str) -> dict[str, Any]:
    """The configuration in a model's folder, or of a hub model that is in the cache or can be fetched."""
    path = Path(folder(model)).expanduser() / part / "config.json"
    if not path.exists():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(model, f"{part}/config.json".lstrip("/")))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name not in ("_name_or_path", "architectures")}


def _unet(model: Any) -> Count:
    points = [(side, TEXT_TOKENS) for side in _SIDES] + [(side, 2 * TEXT_TOKENS) for side in _SIDES[1:]]
    width = model.config.cross_attention_dim

    def forward(side: int, tokens: int) -> Callable[[], Any]:
        text = torch.empty(1, tokens, width, device="meta")
        return lambda: model(torch.empty(1, 4, side, side, device="meta"), torch.zeros(1, device="meta"), text)

    return {"forward": _fit([unet_terms(*point) for point in points], [_flops(forward(*point)) for point in points])}


def _vae(model: Any) -> Count:
    terms = [side_terms(side) for side in _SIDES]
    scale = 2 ** (len(model.config.block_out_channels) - 1)
    pixels = [torch.empty(1, 3, side * scale, side * scale, device="meta") for side in _SIDES]
    latents = [torch.empty(1, model.config.latent_channels, side, side, device="meta") for side in _SIDES]
    return {
        "encode": _fit(terms, [_flops(partial(model.encode, x)) for x in pixels]),
        "decode": _fit(terms, [_flops(partial(model.decode, x)) for x in latents]),
    }


def _text(model: Any) -> Count:
    return {"slice": _flops(lambda: model(torch.zeros(1, TEXT_TOKENS, dtype=torch.long, device="meta")))}


def _llava(model: Any) -> Count:
    vision, told = model.config.vision_config, model.config.text_config
    pixels = torch.empty(1, 3, vision.image_size, vision.image_size, device="meta")
    patches = (vision.image_size // vision.patch_size) ** 2
    seen = torch.empty(1, patches, vision.hidden_size, device="meta")
    inner = model.model
    image = _flops(lambda: inner.vision_tower(pixels)) + _flops(lambda: inner.multi_modal_projector(seen))

    def read(tokens: int) -> Callable[[], Any]:
        embedded = torch.empty(1, tokens, told.hidden_size, device="meta")
        return lambda: inner.language_model(inputs_embeds=embedded)

    token, pair = _fit([pair_terms(n) for n in _LENGTHS], [_flops(read(n)) for n in _LENGTHS])
    head = 2 * told.hidden_size * told.vocab_size
    return {"image": image, "image_tokens": patches, "token": token, "pair": pair, "head": head}


_COUNTED: Final = {"unet": _unet, "vae": _vae, "text_encoder": _text, "llava": _llava}


def _flops(call: Callable[[], Any]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _fit(terms: Sequence[Sequence[float]], flops: Sequence[float]) -> list[float]:
    scale = np.max(np.abs(terms), axis=0)  # side ** 4 beside 1
    found = np.linalg.lstsq(np.array(terms) / scale, np.array(flops), rcond=None)[0] / scale
    return [float(f"{value:.12g}") for value in found]


if __name__ == "__main__":
    print(json.dumps(counts(), indent=1))
