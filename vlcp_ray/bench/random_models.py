"""Knows how models of the paper's sizes, or tiny ones, are made with random weights in the folders of real ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import diffusers
import torch
import transformers

from vlcp_ray.cost.counts import PAPER, build, config_of
from vlcp_ray.models.folders import folder

Size = Literal["real", "tiny"]

_DEMO: Final = "demo/stable_diffusion"
_DEMO_LLAVA: Final = "demo/llava"
#: Stable Diffusion v1-5's.
_SCHEDULER: Final[Mapping[str, Any]] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def stable_diffusion(size: Size, target: Path, dtype: torch.dtype = torch.float16) -> str:
    """Write a Stable Diffusion as `from_pretrained` reads it, and return its folder; one that is there is kept.

    Its tokenizer is the demo's, whose ids are among the first thousand of every vocabulary.

    Args:
        dtype: of the files; 2 GiB in half precision at the real size.
    """
    place = target / f"stable-diffusion-{size}"
    if (place / "model_index.json").exists():
        return str(place)
    torch.manual_seed(0)
    parts = {part: _random(part, _settings(size, part), dtype) for part in ("unet", "vae", "text_encoder")}
    words = transformers.CLIPTokenizer.from_pretrained(folder(_DEMO), subfolder="tokenizer")
    diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=words,
        scheduler=diffusers.PNDMScheduler(**_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(place)
    return str(place)


def llava(size: Size, target: Path, dtype: torch.dtype = torch.float16, device: str = "cpu") -> str:
    """Write a LLaVA as transformers reads it, and return its folder; one that is there is kept.

    Tokenizer and special tokens are the demo's, the image processor is that of the vision tower's size.

    Args:
        dtype: of the files; 13 GiB in half precision at the real size.
        device: where the weights are drawn.
    """
    place = target / f"llava-{size}"
    if (place / "processor_config.json").exists():
        return str(place)
    torch.manual_seed(0)
    words = transformers.AutoTokenizer.from_pretrained(folder(_DEMO_LLAVA))
    said = config_of(_DEMO_LLAVA, "")
    # The tokenizer says which id stands for the image and for padding.
    settings = dict(_settings(size, "llava")) | {name: said[name] for name in ("image_token_index", "pad_token_id")}
    settings["text_config"] = dict(settings["text_config"]) | {"pad_token_id": said["pad_token_id"]}
    model = _random("llava", settings, dtype, device)
    model.generation_config.pad_token_id = said["pad_token_id"]
    model.generation_config.eos_token_id = None  # random words know no end: every answer has all its tokens
    model.save_pretrained(place)
    words.save_pretrained(place)
    vision = settings["vision_config"]
    processor = json.loads(Path(folder(_DEMO_LLAVA), "processor_config.json").read_text(encoding="utf-8"))
    side = vision["image_size"]
    processor["patch_size"] = vision["patch_size"]
    processor["image_processor"] |= {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
    (place / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return str(place)


def _settings(size: Size, part: str) -> Mapping[str, Any]:
    if size == "real":
        return PAPER[part]
    return config_of(_DEMO_LLAVA, "") if part == "llava" else config_of(_DEMO, part)


def _random(part: str, settings: Mapping[str, Any], dtype: torch.dtype, device: str = "cpu") -> Any:
    """A model in `dtype` from the beginning, so that the real LLaVA never takes 26 GiB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return build(part, settings, device).to(dtype).eval()
    finally:
        torch.set_default_dtype(before)
