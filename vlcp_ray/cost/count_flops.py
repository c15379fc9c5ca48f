"""Count the operations of models: `python -m vlcp_ray.cost.count_flops > vlcp_ray/cost/counts.json`.

The models are built from their configurations on torch's meta device, which stores shapes without values, and run
under torch's own counter (`torch.utils.flop_counter`). A multiplication and an addition are two operations.
Convolutions, matrix products and attention are counted, element-wise operations are not.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import torch

from vlcp_ray.cost.classifiers import count_operations
from vlcp_ray.cost.flops import TEXT_TOKENS, side_terms, token_terms, unet_terms
from vlcp_ray.models import architectures, dit
from vlcp_ray.models.lora import LAYERS
from vlcp_ray.models.networks import FEATURES, NETWORKS, Norm, Stem
from vlcp_ray.models.pretrained import folder

#: The configurations of the paper's models: those of Stable Diffusion, its captioner, and the DiT of minimax.
PAPER: Final[Mapping[str, Mapping[str, Any]]] = {
    **architectures.own_configs(architectures.FIRST),
    **json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8")),
}
#: The configurations of Stable Diffusion 2.1 and XL where they differ from the paper's model: parts by model.
BASE_MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    name: architectures.own_configs(name) for name in architectures.NAMES if name != architectures.FIRST
}
#: Sides of the images, in pixels, for each stem of the networks.
_IMAGE_SIDES: Final[Mapping[Stem, int]] = {"small": 64, "middle": 128, "large": 224}
_LATENT_SIDES: Final = (16, 32, 64)  # divisible by every downsampling of the models
_DIT_TOKENS: Final = (4, 8, 16)  # along each side
_LENGTHS: Final = (64, 128, 256)  # tokens

Count = dict[str, Any]


def build(part: str, settings: Mapping[str, Any], device: str = "meta") -> Any:
    """Build a model with random weights, or without weights on the device `meta`.

    Args:
        part: unet, vae, text_encoder, text_encoder_2 (of XL), llava or transformer (a DiT).
        settings: the content of its config.json.
        device: a torch device.
    """
    import diffusers
    import transformers

    with torch.device(device):
        if part == "unet":
            return diffusers.UNet2DConditionModel.from_config(dict(settings))
        if part == "vae":
            return diffusers.AutoencoderKL.from_config(dict(settings))
        if part == "transformer":
            return diffusers.DiTTransformer2DModel.from_config(dict(settings))
        if part == "text_encoder":
            return transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))
        if part == "text_encoder_2":
            return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**settings))
        return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**settings))


def count(part: str, settings: Mapping[str, Any]) -> Count:
    """Count the parameters of a model, and fit the coefficients of its operations for each of its uses."""
    model = build(part, settings).eval()
    return {"parameters": sum(p.numel() for p in model.parameters()), **_COUNTERS[part](model)}


def count_network(name: str) -> dict[Stem, float]:
    """Count the operations of a forward pass but for the last layer, per pixel of the image, by stem."""
    return {
        network.stem(side, norm): _flops_per_pixel(name, side, norm)
        for network in (NETWORKS[name],)
        for side in _IMAGE_SIDES.values()
        for norm in get_args(Norm)
    }


def _flops_per_pixel(name: str, side: int, norm: Norm) -> float:
    from vlcp_ray.models.classifiers import build_classifier

    with torch.device("meta"):
        network = build_classifier(name, num_classes=1, input_size=side, width=0, seed=0, norm=norm)
    flops = count_operations(lambda: network.eval()(torch.empty(1, 3, side, side, device="meta")))
    return (flops - 2 * FEATURES) / side**2  # without the last layer


def counts() -> dict[str, Any]:
    """Count the paper's models, then the demo's, then the other base models."""
    by_part: dict[str, list[Count]] = {part: [count(part, settings)] for part, settings in PAPER.items()}
    for part in ("unet", "vae", "text_encoder"):
        by_part[part].append(count(part, config_of("demo/stable_diffusion", part)))
    by_part["llava"].append(count("llava", config_of("demo/llava", "")))
    by_part["transformer"].append(count("transformer", config_of("demo/dit", "transformer")))
    for parts in BASE_MODELS.values():
        for part, settings in parts.items():
            by_part.setdefault(part, []).append(count(part, settings))
    return by_part


def config_of(model: str, part: str) -> dict[str, Any]:
    """Read the configuration of a model from its folder, or from the hub or its cache."""
    path = Path(folder(model)).expanduser() / part / "config.json"
    if not path.exists():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(model, f"{part}/config.json".lstrip("/")))
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "architectures")}


def _count_unet(model: Any) -> Count:
    points = [(side, TEXT_TOKENS) for side in _LATENT_SIDES] + [(side, 2 * TEXT_TOKENS) for side in _LATENT_SIDES[1:]]
    width, more = model.config.cross_attention_dim, added_conditions(model.config, 1, device="meta")

    def forward(side: int, tokens: int) -> Callable[[], Any]:
        text, latents = torch.empty(1, tokens, width, device="meta"), torch.empty(1, 4, side, side, device="meta")
        return lambda: model(latents, torch.zeros(1, device="meta"), text, added_cond_kwargs=more)

    fit = _fit([unet_terms(*point) for point in points], [count_operations(forward(*point)) for point in points])
    return {"forward": fit, "lora": lora_width(model)}


def lora_width(unet: Any) -> int:
    """Count the weights of LoRA's matrices of rank 1: input and output of every layer that has them."""
    layers = [layer for name, layer in unet.named_modules() if name.endswith(LAYERS)]
    return sum(layer.in_features + layer.out_features for layer in layers)


def added_conditions(config: Any, rows: int, **options: Any) -> dict[str, torch.Tensor]:
    """Make the conditions that the UNet of XL gets in addition, of no value; none for other models.

    Args:
        config: of the UNet.
        rows: of them.
        options: of `torch.empty`: device, dtype.
    """
    if config.addition_embed_type != "text_time":
        return {}
    sizes = 6  # of the image, before and after it was cropped, and where
    width = config.projection_class_embeddings_input_dim - sizes * config.addition_time_embed_dim
    return {"text_embeds": torch.empty(rows, width, **options), "time_ids": torch.empty(rows, sizes, **options)}


def _count_vae(model: Any) -> Count:
    terms = [side_terms(side) for side in _LATENT_SIDES]
    scale = 2 ** (len(model.config.block_out_channels) - 1)
    pixels = [torch.empty(1, 3, side * scale, side * scale, device="meta") for side in _LATENT_SIDES]
    latents = [torch.empty(1, model.config.latent_channels, side, side, device="meta") for side in _LATENT_SIDES]
    return {
        "encode": _fit(terms, [count_operations(partial(model.encode, x)) for x in pixels]),
        "decode": _fit(terms, [count_operations(partial(model.decode, x)) for x in latents]),
    }


def _count_transformer(model: Any) -> Count:
    """Count a DiT whose blocks each compute the embeddings of class and timestep, as diffusers does."""
    size = model.config.patch_size

    def forward(side: int) -> Callable[[], Any]:
        zero = torch.zeros(1, dtype=torch.long, device="meta")
        return lambda: model(torch.empty(1, model.config.in_channels, side, side, device="meta"), zero, zero)

    sides = [size * tokens for tokens in _DIT_TOKENS]
    fit = _fit([side_terms(side) for side in sides], [count_operations(forward(side)) for side in sides])
    weights = dict(dit.adapt(model).named_parameters())
    return {"forward": fit, "trained": sum(weights[name].numel() for name in dit.trained_by_difffit(model))}


def _count_text_encoder(model: Any) -> Count:
    return {"slice": count_operations(lambda: model(torch.zeros(1, TEXT_TOKENS, dtype=torch.long, device="meta")))}


def _count_llava(model: Any) -> Count:
    vision, language = model.config.vision_config, model.config.text_config
    pixels = torch.empty(1, 3, vision.image_size, vision.image_size, device="meta")
    patches = (vision.image_size // vision.patch_size) ** 2
    features = torch.empty(1, patches, vision.hidden_size, device="meta")
    inner = model.model
    image = count_operations(lambda: inner.vision_tower(pixels)) + count_operations(
        lambda: inner.multi_modal_projector(features)
    )

    def read(tokens: int) -> Callable[[], Any]:
        embedded = torch.empty(1, tokens, language.hidden_size, device="meta")
        return lambda: inner.language_model(inputs_embeds=embedded)

    token, token_pair = _fit([token_terms(n) for n in _LENGTHS], [count_operations(read(n)) for n in _LENGTHS])
    head = 2 * language.hidden_size * language.vocab_size
    return {"image": image, "image_tokens": patches, "token": token, "token_pair": token_pair, "head": head}


_COUNTERS: Final = {
    "unet": _count_unet,
    "vae": _count_vae,
    "text_encoder": _count_text_encoder,
    "text_encoder_2": _count_text_encoder,
    "llava": _count_llava,
    "transformer": _count_transformer,
}


def _fit(terms: Sequence[Sequence[float]], flops: Sequence[float]) -> list[float]:
    scale = np.max(np.abs(terms), axis=0)  # the terms differ by up to side ** 4
    coefficients = np.linalg.lstsq(np.array(terms) / scale, np.array(flops), rcond=None)[0] / scale
    return [float(f"{value:.12g}") for value in coefficients]


if __name__ == "__main__":
    print(json.dumps(counts(), indent=1))
    for name, network in NETWORKS.items():
        if network.flops_per_pixel:
            print(f"models/networks.py: {name} flops_per_pixel={count_network(name)!r}", file=sys.stderr)
