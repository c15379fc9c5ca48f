"""The families of vision-language models that caption images, recognised by `model_type` of their config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

#: LLaVA-1.5: asked with its own prompt, not with a chat template, and shown square images.
LLAVA: Final = "llava"
#: By `model_type`: the family, and a model of the hub. Each is served by vLLM and by transformers'
#: AutoModelForImageTextToText; models for documents, video or speech only, and models without a chat, are left out.
FAMILIES: Final[Mapping[str, tuple[str, str]]] = {
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
_CHAT_FILES: Final = ("chat_template.jinja", "chat_template.json")
#: Files that may hold a chat template among other settings.
_WITH_CHAT: Final = ("tokenizer_config.json", "processor_config.json")


def why_no_captioner(config: Mapping[str, Any], place: Path | None = None) -> str:
    """Say why a model cannot caption images: "" if it can.

    Args:
        config: the content of its config.json.
        place: its folder, None where only its config is known: then its chat template is not looked for.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(f"{title} ({kind})" for kind, (title, _) in FAMILIES.items())
        return f"its model_type in config.json is {family!r}, which is none of the families that are known: {known}"
    if place is not None and family != LLAVA and not _has_chat(place):
        return f"it has no chat template ({' or '.join(_CHAT_FILES)}); give a model that was tuned to answer"
    return ""


def family_of(place: Path) -> str:
    """Return the `model_type` of the model in a folder."""
    return str(json.loads((place / "config.json").read_text(encoding="utf-8")).get("model_type"))


def _has_chat(place: Path) -> bool:
    if any((place / name).exists() for name in _CHAT_FILES):
        return True
    files = [place / name for name in _WITH_CHAT if (place / name).exists()]
    return any(json.loads(file.read_text(encoding="utf-8")).get("chat_template") for file in files)
