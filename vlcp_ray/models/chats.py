"""How captioners are asked: prompts in their chat templates, images as they are shown, and answers as they are read."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from PIL import Image

from vlcp_ray.models import families
from vlcp_ray.models.pretrained import folder, pinned
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import pair

#: The prompt of LLaVA-1.5; all other models have a chat template.
CHAT_TEMPLATE: Final = "USER: <image>\n{prompt} ASSISTANT:"
#: Around what a model thinks before it answers, where its chat template cannot turn that off.
_THOUGHT, _END_OF_THOUGHT = "<think>", "</think>"
_ANSWER: Final = re.compile("</?answer>")  # around the answers of GLM
_MAX_RATIO: Final = 100  # of the sides of an image; Qwen's processor refuses more than 200


class Chat(Protocol):
    """How a model is asked: the text around a prompt, the image that it is shown, and the answer in what it writes."""

    @property
    def processor_options(self) -> Mapping[str, Any]:
        """Settings of its image processor that are not the model's own."""
        ...

    def write(self, prompt: str) -> str:
        """Return the whole text, with a mark for the image."""
        ...

    def view(self, image: Image.Image) -> Image.Image:
        """Return what the model's own processor gets of an RGB image."""
        ...

    def read(self, text: str) -> str:
        """Return the answer; "" where the model was cut before it began."""
        ...


def load_chat(settings: pair.Caption) -> Chat:
    """Load how the model of the settings is asked."""
    return LlavaChat(settings) if is_llava(settings.model) else TemplateChat(settings)


def is_llava(model: str) -> bool:
    """Return whether a model is a LLaVA-1.5, from its config."""
    from transformers import PretrainedConfig

    config, _ = PretrainedConfig.get_config_dict(folder(model), **pinned(model))
    if reason := families.why_no_captioner(config):
        raise ConfigError(f"caption.model: {model} cannot caption images: {reason}")
    return families.is_llava(config)


class LlavaChat:
    """The prompt of LLaVA-1.5; images are made square before its processor, which cuts off what is longer."""

    @property
    def processor_options(self) -> Mapping[str, Any]:
        """See `Chat`."""
        return {}

    def __init__(self, settings: pair.Caption) -> None:
        """Load the colour that the model takes for neutral."""
        from transformers import AutoImageProcessor

        self.limit = settings.max_pixels
        self.is_padded = settings.image_aspect_ratio == "pad"
        mean = AutoImageProcessor.from_pretrained(folder(settings.model), **pinned(settings.model)).image_mean
        self.colour = tuple(int(255 * value) for value in mean)

    def write(self, prompt: str) -> str:
        """See `Chat`."""
        return CHAT_TEMPLATE.replace("{prompt}", prompt)

    def view(self, image: Image.Image) -> Image.Image:
        """Pad the shorter sides with the mean colour (LLaVA's `expand2square`), or return the image as it is."""
        image = shrink(image, self.limit)
        if not self.is_padded or image.width == image.height:
            return image
        side = max(image.size)
        return pad(image, (side, side), self.colour)

    def read(self, text: str) -> str:
        """See `Chat`."""
        return text.strip()


class TemplateChat:
    """The model's own chat template, with thinking turned off where it can be; images keep their aspect ratio."""

    def __init__(self, settings: pair.Caption) -> None:
        """Load the template.

        Raises:
            ConfigError: the model has none, or one without a place for an image.
        """
        self.limit, self.max_model_len = settings.max_pixels, settings.max_model_len
        self.processor = load_processor(settings.model)
        tokenizer = self.processor.tokenizer
        # Engines add the first token of a text; a template that writes it too would double it.
        first = tokenizer("")["input_ids"][:1]
        self.first = tokenizer.bos_token if first and first == [tokenizer.bos_token_id] else ""
        if not self.processor.chat_template:
            raise ConfigError(f"caption.model: {settings.model} has no chat template; give a model tuned to answer")
        # Processors warn of settings that their template does not know.
        self.options = {name: False for name in ("enable_thinking",) if name in str(self.processor.chat_template)}
        text = self.write("x")
        self.begins_thinking = text.rstrip().endswith(_THOUGHT)
        if text == self._fill([{"type": "text", "text": "x"}]):
            raise ConfigError(
                f"caption.model: the chat template of {settings.model} has no place for an image; give another model"
            )

    def write(self, prompt: str) -> str:
        """See `Chat`."""
        return self._fill([{"type": "image"}, {"type": "text", "text": prompt}])

    def _fill(self, parts: Sequence[Mapping[str, str]]) -> str:
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, **self.options
        )
        return text.removeprefix(self.first)

    @property
    def processor_options(self) -> Mapping[str, Any]:
        """See `Chat`.

        Idefics3 enlarges every image to a given longest side, and cuts it into tiles; InternVL cuts each into as many
        tiles as fit its aspect ratio: `max_pixels` limits both. Qwen's processor may make so many tokens of an image
        that vLLM reserves memory for them, though max_model_len does not admit them: their number is limited to four
        times as many, so that an image with too many of them still has too many.
        """
        images = self.processor.image_processor
        tile, unit = getattr(images, "max_image_size", None), getattr(images, "merge_size", 0)
        if self.limit and tile and "longest_edge" in tile:
            side = max(1, math.isqrt(self.limit) // tile["longest_edge"]) * tile["longest_edge"]
            return {"size": {"longest_edge": min(side, images.size["longest_edge"])}}
        if self.limit and hasattr(images, "crop_to_patches"):
            tiles = self.limit // (images.size["height"] * images.size["width"])
            return {"max_patches": min(images.max_patches, max(1, tiles))}
        if unit and "longest_edge" in images.size:
            most = 4 * self.max_model_len * (images.patch_size * unit) ** 2
            if images.size["longest_edge"] > most:
                least = min(images.size["shortest_edge"], most)
                return {"size": {"shortest_edge": least, "longest_edge": most}}
        return {}

    def view(self, image: Image.Image) -> Image.Image:
        """Shrink the image to max_pixels, and pad one that is thinner than any processor takes."""
        image = shrink(image, self.limit)
        least = math.ceil(max(image.size) / _MAX_RATIO)
        if min(image.size) >= least:
            return image
        return pad(image, (max(image.width, least), max(image.height, least)), (0, 0, 0))

    def read(self, text: str) -> str:
        """See `Chat`. Of a character that was cut no byte is left, in vLLM as in transformers."""
        _, is_thought_out, answer = text.rpartition(_END_OF_THOUGHT)
        if not is_thought_out and (self.begins_thinking or text.lstrip().startswith(_THOUGHT)):
            return ""
        return _ANSWER.sub("", answer).rstrip("\N{REPLACEMENT CHARACTER}").strip()


def shrink(image: Image.Image, limit: int) -> Image.Image:
    """Make an image smaller, with its aspect ratio, so that it has at most `limit` pixels; 0: return it as it is."""
    if not limit or image.width * image.height <= limit:
        return image
    factor = (limit / (image.width * image.height)) ** 0.5
    width, height = (max(1, int(side * factor)) for side in image.size)
    height = min(height, limit)  # of an image of one column
    return image.resize((min(width, limit // height), height), Image.Resampling.BICUBIC)


def pad(image: Image.Image, size: tuple[int, int], colour: tuple[int, ...]) -> Image.Image:
    """Return an image of another size with this one in its middle."""
    padded = Image.new("RGB", size, colour)
    padded.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return padded


def load_processor(model: str) -> Any:
    """Load the processor of a model: its tokenizer, its image processor and its chat template."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder(model), **pinned(model))
    except ImportError as error:  # of a package that one family needs
        line = " ".join(str(error).split())
        raise ConfigError(f"caption.model: the processor of {model} cannot be loaded: {line}") from error
