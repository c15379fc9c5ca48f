"""Build vision-language models with random weights in the real formats, small enough to load in a second."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors.torch import load_file, save_file

from vlcp_ray.models.pretrained import folder

WIDTH: Final = 64
_HEADS: Final = 2
#: The layout of ChatML, in which every model of the Qwen family is asked; `enable_thinking` as in Qwen3.
_CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
#: The layout of SmolVLM, which begins with the tokenizer's own first token.
_SMOL: Final = (
    "<s>{% for message in messages %}{{ message['role'] | capitalize }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
#: The layout of Gemma 3, which begins with the tokenizer's own first token.
_GEMMA: Final = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>{% else %}"
    "{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def _tokenizer(*special: str, image: str = "<image>", **named: str) -> Any:
    """Load the demo's tokenizer, of 640 tokens, and add a family's special tokens, whose last one ends an answer.

    Args:
        named: tokens by the names that the family's processor reads.
    """
    words = transformers.AutoTokenizer.from_pretrained(folder("demo/llava"), image_token=image, **named)
    words.add_special_tokens({"additional_special_tokens": list(special), "eos_token": special[-1]})
    return words


def _text(words: Any, **more: Any) -> dict[str, Any]:
    """Return the settings of a language model of two layers."""
    return {
        "vocab_size": -(-len(words) // 64) * 64,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "tie_word_embeddings": False,
    } | more


def _vision(**more: Any) -> dict[str, Any]:
    """Return the settings of a vision tower of two layers for tiles of 32 x 32 pixels."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": _HEADS,
        "image_size": 32,
        "patch_size": 8,
    } | more


def _qwen2_5_vl() -> tuple[Any, Any]:
    words = _tokenizer(
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|im_end|>",
        image="<|image_pad|>",
    )
    ids = words.convert_tokens_to_ids
    vision = {
        "depth": 2,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": _HEADS,
        "out_hidden_size": WIDTH,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text(
            words, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
        ),
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    sizes = {"patch_size": 8, "size": {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}}
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**sizes),
        words,
        transformers.Qwen2VLVideoProcessor(**sizes),
        chat_template=_CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    words = _tokenizer("<|im_start|>", "<image>", "<video>", "<|im_end|>")
    places = [[32, 64], [64, 32], [64, 64]]
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text(words)},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_vision()},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=places,
        vision_aspect_ratio="anyres_max_4",
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=places),
        words,
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        chat_template=_CHATML.replace("IMAGE", "<image>"),
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def _smolvlm() -> tuple[Any, Any]:
    """Build the Idefics3 that SmolVLM-256M and SmolVLM-500M are."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = _tokenizer("<fake_token_around_image>", "<image>", "<global-img>", *tiles, "<end_of_utterance>")
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **_text(words, head_dim=WIDTH // _HEADS)},
        vision_config=_vision(),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,
    )
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 32})
    processor = transformers.Idefics3Processor(images, words, image_seq_len=4, chat_template=_SMOL)
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = _tokenizer(
        "<|im_start|>", *marks.values(), "<video>", "<|im_end|>", image="<IMG_CONTEXT>", video_token="<video>", **marks
    )
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **_text(words)},
        vision_config=_vision(image_size=[32, 32], patch_size=[8, 8]),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=6),
        words,
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=_CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    image = "<image_soft_token>"
    words = _tokenizer("<start_of_turn>", *marks.values(), image, "<end_of_turn>", image=image, **marks)
    ids = words.convert_tokens_to_ids
    config = transformers.Gemma3Config(
        text_config=_text(words, head_dim=WIDTH // _HEADS, query_pre_attn_scalar=WIDTH // _HEADS, sliding_window=512),
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_vision()},
        mm_tokens_per_image=4,
        boi_token_index=ids(marks["boi_token"]),
        eoi_token_index=ids(marks["eoi_token"]),
        image_token_index=ids(image),
        tie_word_embeddings=False,
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        words,
        image_seq_length=4,
        chat_template=_GEMMA,
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


FAMILIES: Final[Mapping[str, Callable[[], tuple[Any, Any]]]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "llava_onevision": _llava_onevision,
    "idefics3": _smolvlm,
    "internvl": _internvl,
    "gemma3": _gemma3,
}


def build_captioner(family: str, target: Path) -> str:
    """Write the folder of a captioner of a family, and return it."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = FAMILIES[family]()
        for weight in model.parameters():  # large enough that the best token is well ahead of the second
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=1.2 / weight[0].numel() ** 0.5)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(target)
    processor.save_pretrained(target)
    if family == "llava_onevision":  # transformers 5 leaves a level out of the names that the models of the hub have
        weights = load_file(target / "model.safetensors")
        named = {name.replace("vision_tower.", "vision_tower.vision_model."): one for name, one in weights.items()}
        save_file(named, target / "model.safetensors", {"format": "pt"})
    return str(target)
