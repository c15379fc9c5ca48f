"""The families of captioners and of base models, recognised by their configurations, and the files that each has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple


class Kind(NamedTuple):
    """A kind of model, and the files without which a folder is none; of several patterns one must be there."""

    name: str
    files: tuple[str, ...]


def _pipeline_files(models: tuple[str, ...], tokenizers: tuple[str, ...] = ()) -> tuple[str, ...]:
    """List the files of a pipeline of diffusers with these parts."""
    return (
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"{part}/tokenizer_config.json" for part in tokenizers),
        *(file for part in models for file in (f"{part}/config.json", f"{part}/*.safetensors|{part}/*.bin")),
    )


STABLE_DIFFUSION: Final = Kind(
    "Stable Diffusion in the format of diffusers",
    _pipeline_files(("text_encoder", "unet", "vae"), ("tokenizer",)),
)
CAPTIONER: Final = Kind(
    "vision-language model",
    (
        "config.json",
        "tokenizer_config.json",
        "processor_config.json|preprocessor_config.json",
        "*.safetensors|*.bin",
    ),
)
DIT: Final = Kind("DiT in the format of diffusers", _pipeline_files(("transformer", "vae")))


class BaseModels(NamedTuple):
    """A family of base models.

    Args:
        name: in words.
        pipelines: the classes of diffusers that the model_index.json of its models names.
        kind: its files.
        text_encoders: the subfolders of its text encoders.
        tokenizers: those of their tokenizers.
    """

    name: str
    pipelines: tuple[str, ...]
    kind: Kind
    text_encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]

    @property
    def is_xl(self) -> bool:
        """Whether the UNet gets a pooled text and the sizes of the image besides the text."""
        return len(self.text_encoders) > 1


#: Stable Diffusion 1.x and 2.x differ in their text encoder and in what the UNet predicts, which their files say.
SD: Final = BaseModels(
    "Stable Diffusion 1.x and 2.x",
    ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    STABLE_DIFFUSION,
    ("text_encoder",),
    ("tokenizer",),
)
XL: Final = BaseModels(
    "Stable Diffusion XL",
    ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    Kind(
        "Stable Diffusion XL in the format of diffusers",
        _pipeline_files(("text_encoder", "text_encoder_2", "unet", "vae"), ("tokenizer", "tokenizer_2")),
    ),
    ("text_encoder", "text_encoder_2"),
    ("tokenizer", "tokenizer_2"),
)
BASE_MODELS: Final = (SD, XL)
#: The files that say whether a model of a family can be fine-tuned.
CONFIGURATIONS: Final = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
#: What the UNet of a base model may predict: the noise, or the velocity (Salimans and Ho 2022).
PREDICTIONS: Final = ("epsilon", "v_prediction")

#: That of LLaVA-1.5, which is asked with its own prompt, not with a chat template, and shown square images.
LLAVA: Final = "llava"
#: By `model_type`: the family, and a model of the hub. Each is served by vLLM and by transformers'
#: AutoModelForImageTextToText; models for documents, video or speech only, and models without a chat, are left out.
CAPTIONERS: Final[Mapping[str, tuple[str, str]]] = {
    LLAVA: ("LLaVA-1.5", "llava-hf/llava-1.5-7b-hf"),
    "llava_next": ("LLaVA-NeXT", "llava-hf/llava-v1.6-mistral-7b-hf"),
    "llava_onevision": ("LLaVA-OneVision", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
    "qwen2_vl": ("Qwen2-VL", "Qwen/Qwen2-VL-2B-Instruct"),
    "qwen2_5_vl": ("Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct"),
    "qwen3_vl": ("Qwen3-VL", "Qwen/Qwen3-VL-4B-Instruct"),
    "qwen3_vl_moe": ("Qwen3-VL (mixture of experts)", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
    "idefics3": ("SmolVLM and Idefics3", "HuggingFaceTB/SmolVLM-500M-Instruct"),
    "smolvlm": ("SmolVLM2", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
    "internvl": ("InternVL", "OpenGVLab/InternVL3-2B-hf"),
    "gemma3": ("Gemma 3", "google/gemma-3-4b-it"),
    "mistral3": ("Mistral 3", "mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
    "glm4v": ("GLM-4V", "zai-org/GLM-4.1V-9B-Thinking"),
    "lfm2_vl": ("LFM2-VL", "LiquidAI/LFM2-VL-450M"),
}
#: Those whose tokens of an image attend to each other in both directions, which vLLM does on GPUs only.
BIDIRECTIONAL: Final = ("gemma3",)
#: Packages that the processors of a family need, beside those of vlcp_ray.
PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {"smolvlm": ("num2words",)}
#: More words than a Llama 1 or 2 has, on which LLaVA-1.5 is built, and fewer than a Llama 3.
_LLAVA_WORDS: Final = 33_000
#: Those of which tiny models are in the tests, in transformers and, where it serves them on CPUs, in vLLM.
TESTED: Final = (LLAVA, "llava_onevision", "qwen2_5_vl", "idefics3", "internvl", "gemma3")
CHAT_FILES: Final = ("chat_template.jinja", "chat_template.json")
#: Files that may hold a chat template among other settings.
WITH_CHAT: Final = ("tokenizer_config.json", "processor_config.json")


def check(kind: Kind, place: Path, is_whole: bool = True) -> Kind:
    """Refuse a model of no known family, by those of its configurations that are in its folder.

    Args:
        kind: STABLE_DIFFUSION, CAPTIONER or DIT.
        place: the folder.
        is_whole: whether all of its files are there; a captioner without a chat template is refused only then.

    Returns:
        The kind of its family, whose files it must have.

    Raises:
        ValueError: says what is wrong with the model, to be read after its name.
    """
    if not (place / kind.files[0]).is_file():
        return kind
    if kind is STABLE_DIFFUSION:
        return _check_base_model(place)
    if kind is CAPTIONER and (
        reason := why_no_captioner(read_json(place / kind.files[0]), place if is_whole else None)
    ):
        raise ValueError(f"cannot caption images: {reason}")
    return kind


def base_models(index: Mapping[str, Any]) -> BaseModels:
    """Return the family of a base model.

    Args:
        index: the content of its model_index.json.

    Raises:
        ValueError: as `check`.
    """
    named = index.get("_class_name")
    found = next((one for one in BASE_MODELS if named in one.pipelines), None)
    if found is None or None in (index.get(part, [None])[0] for part in found.text_encoders):
        known = ", ".join(f"{one.name} ({one.pipelines[0]})" for one in BASE_MODELS)
        lacking = "" if found is None else " without one of its text encoders, as a refiner is"
        raise ValueError(f"is a {named}{lacking}; give a model of one of these families: {known}")
    return found


def _check_base_model(place: Path) -> Kind:
    """Refuse one whose UNet takes more than a latent or predicts something else, or whose latents are shifted."""
    found = base_models(read_json(place / "model_index.json"))
    paths = [place / part for part in CONFIGURATIONS]
    unet, vae, schedule = (read_json(path) if path.is_file() else {} for path in paths)
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if latent != 4:
        raise ValueError(f"has latents of {latent} channels; give one with the 4 of Stable Diffusion 1.x, 2.x and XL")
    if channels != latent:
        raise ValueError(
            f"has a UNet that takes {channels} channels, as those for inpainting, depth or larger images do; give one "
            "that takes the 4 of a latent"
        )
    if vae.get("latents_mean") or vae.get("latents_std") or vae.get("shift_factor"):
        raise ValueError(
            "has latents that are shifted, not only scaled (vae/config.json: latents_mean or shift_factor), which "
            "fine-tuning does not do; give another model"
        )
    if (predicts := schedule.get("prediction_type", "epsilon")) not in PREDICTIONS:
        raise ValueError(f"predicts {predicts!r}; give one that predicts {' or '.join(PREDICTIONS)}")
    return found.kind


def why_no_captioner(config: Mapping[str, Any], place: Path | None = None) -> str:
    """Say why a model cannot caption images: "" if it can.

    Args:
        config: the content of its config.json.
        place: its folder, None where only its config is known: then its chat template is not looked for.
    """
    family = config.get("model_type")
    if family not in CAPTIONERS:
        known = ", ".join(f"{title} ({kind})" for kind, (title, _) in CAPTIONERS.items())
        return f"its model_type in config.json is {family!r}, which is none of the families that are known: {known}"
    if place is not None and not is_llava(config) and not _has_chat(place):
        return f"it has no chat template ({' or '.join(CHAT_FILES)}); give a model that was tuned to answer"
    return ""


def is_llava(config: Mapping[str, Any]) -> bool:
    """Return whether a model is asked as LLaVA-1.5 is; others of its model_type, as Pixtral, have their own chat.

    Args:
        config: the content of its config.json.
    """
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    return bool(
        config.get("model_type") == LLAVA
        and vision.get("model_type", "clip_vision_model") == "clip_vision_model"
        and text.get("vocab_size", 0) < _LLAVA_WORDS
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model.

    Raises:
        ValueError: it has no object, to be read after the name of the model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"has a damaged {path.name} ({error}); get it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"has a damaged {path.name} (no object in it); get it again")
    return content


def _has_chat(place: Path) -> bool:
    if any((place / name).exists() for name in CHAT_FILES):
        return True
    files = [place / name for name in WITH_CHAT if (place / name).exists()]
    return any(read_json(file).get("chat_template") for file in files)
