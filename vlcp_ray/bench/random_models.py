"""Write models with random weights, of the paper's sizes or tiny, in the formats of the real models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import diffusers
import torch
import transformers

from vlcp_ray.cost.count_flops import BASE_MODELS, PAPER, build, config_of
from vlcp_ray.models.architectures import FIRST
from vlcp_ray.models.pretrained import folder

Size = Literal["real", "tiny"]

_DEMO: Final = "demo/stable_diffusion"
_DEMO_LLAVA: Final = "demo/llava"
_DEMO_DIT: Final = "demo/dit"
_BETAS: Final[Mapping[str, Any]] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
#: The settings of the scheduler of Stable Diffusion v1-5; those of 2.1 besides say what the UNet predicts.
_SCHEDULER: Final[Mapping[str, Any]] = {
    **_BETAS,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def stable_diffusion(
    size: Size, target: Path, dtype: torch.dtype = torch.float16, device: str = "cpu", name: str = FIRST
) -> str:
    """Write a Stable Diffusion unless it exists, and return its folder, which `from_pretrained` can read.

    Its tokenizers are the demo's, whose ids are among the first thousand of every vocabulary.

    Args:
        size: real or tiny; of 2.1 and XL real only.
        target: the folder in which its folder is written.
        dtype: of the files; in half precision at the real size 2 GiB, of XL 7.
        device: where the weights are sampled.
        name: of `vlcp_ray.models.architectures.NAMES`: 1, 2 or xl.
    """
    path = target / (f"stable-diffusion-{size}" if name == FIRST else f"stable-diffusion-{name}-{size}")
    if (path / "model_index.json").exists():
        return str(path)
    torch.manual_seed(0)
    settings = {part: _settings(size, part) for part in ("unet", "vae", "text_encoder")}
    settings |= dict(BASE_MODELS.get(name, {}))
    parts = {part: _random_model(part, own, dtype, device) for part, own in settings.items()}
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder(_DEMO), subfolder="tokenizer")
    if name == "xl":
        pipeline: Any = diffusers.StableDiffusionXLPipeline(
            **parts,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=diffusers.EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
            add_watermarker=False,
        )
    else:
        predicted = "epsilon" if name == FIRST else "v_prediction"
        pipeline = diffusers.StableDiffusionPipeline(
            **parts,
            tokenizer=tokenizer,
            scheduler=diffusers.PNDMScheduler(**_SCHEDULER, prediction_type=predicted),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(path)
    return str(path)


def dit(size: Size, target: Path, dtype: torch.dtype = torch.float16, device: str = "cpu") -> str:
    """Write a DiT unless it exists, and return its folder; the names of its classes are numbers.

    Args:
        size: real or tiny.
        target: the folder in which its folder is written.
        dtype: of the files; 1.6 GiB in half precision at the real size.
        device: where the weights are sampled.
    """
    path = target / f"dit-{size}"
    if (path / "model_index.json").exists():
        return str(path)
    torch.manual_seed(0)
    transformer, vae = (
        _random_model(part, PAPER[part] if size == "real" else config_of(_DEMO_DIT, part), dtype, device)
        for part in ("transformer", "vae")
    )
    pipeline = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler(beta_start=0.0001, beta_end=0.02))
    count = transformer.config.num_embeds_ada_norm
    pipeline.register_to_config(id2label={str(number): str(number) for number in range(count)})
    pipeline.save_pretrained(path)
    return str(path)


def llava(size: Size, target: Path, dtype: torch.dtype = torch.float16, device: str = "cpu") -> str:
    """Write a LLaVA unless it exists, and return its folder, which transformers can read.

    Its tokenizer and special tokens are the demo's; its image processor has the image size of its vision tower.

    Args:
        size: real or tiny.
        target: the folder in which its folder is written.
        dtype: of the files; 13 GiB in half precision at the real size.
        device: where the weights are sampled.
    """
    path = target / f"llava-{size}"
    if (path / "processor_config.json").exists():
        return str(path)
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder(_DEMO_LLAVA))
    demo = config_of(_DEMO_LLAVA, "")
    # The ids of the image token and of padding must be those of the tokenizer.
    settings = dict(_settings(size, "llava")) | {name: demo[name] for name in ("image_token_index", "pad_token_id")}
    settings["text_config"] = dict(settings["text_config"]) | {"pad_token_id": demo["pad_token_id"]}
    model = _random_model("llava", settings, dtype, device)
    model.generation_config.pad_token_id = demo["pad_token_id"]
    model.generation_config.eos_token_id = None  # without an end token every answer has the full number of tokens
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    vision = settings["vision_config"]
    processor = json.loads(Path(folder(_DEMO_LLAVA), "processor_config.json").read_text(encoding="utf-8"))
    side = vision["image_size"]
    processor["patch_size"] = vision["patch_size"]
    processor["image_processor"] |= {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
    (path / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return str(path)


def _settings(size: Size, part: str) -> Mapping[str, Any]:
    if size == "real":
        return PAPER[part]
    return config_of(_DEMO_LLAVA, "") if part == "llava" else config_of(_DEMO, part)


def _random_model(part: str, settings: Mapping[str, Any], dtype: torch.dtype, device: str = "cpu") -> Any:
    """Build a model in `dtype` from the start: in float32 the real LLaVA would take 26 GiB."""
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return build(part, settings, device).to(dtype).eval()
    finally:
        torch.set_default_dtype(default_dtype)
