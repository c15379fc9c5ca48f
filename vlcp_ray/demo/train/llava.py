"""Train the tiny LLaVA: its vision tower on the seven properties, then the whole model on captions."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from vlcp_ray.demo import digits
from vlcp_ray.demo.train import augment, properties, tokens
from vlcp_ray.demo.train.training import Training

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

TOWER_STEPS, TOWER_BATCH = 300, 128
STEPS, BATCH = 300, 64
LEARNING_RATE = 2e-3
COPIES = 11  # augmented copies of the train digits
PATCH = 8
IMAGE_TOKENS = (digits.RESOLUTION // PATCH) ** 2
UNKNOWN_NAME_SHARE = 0.08  # of the captions that are asked for with a name from OTHER_NAMES
OTHER_NAMES = (
    "golden retriever",
    "tench, Tinca tinca",
    "church, church building",
    "aeroplane",
    "English springer, English springer spaniel",
    "cassette player",
    "red fox",
    "garbage truck, dustcart",
    "object",
)


def build(tokenizer: "PreTrainedTokenizerFast") -> "LlavaForConditionalGeneration":
    """Build an untrained LLaVA: a CLIP tower (4 layers of 96, the last unused as in LLaVA-1.5), a Llama (3 of 96)."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=digits.RESOLUTION,
        patch_size=PATCH,
        projection_dim=96,
    )
    text = LlamaConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        vocab_size=-(-len(tokenizer) // 64) * 64,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaForConditionalGeneration(config)


def build_processor(tokenizer: "PreTrainedTokenizerFast") -> "LlavaProcessor":
    """Build LLaVA's processor: images are resized and cropped to 32 px, <image> in the prompt becomes 16 tokens."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    size = digits.RESOLUTION
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
            "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
            "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
            "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
        ),
    )


def pixel_values(images: NDArray[np.uint8]) -> torch.Tensor:
    """Convert uint8 images (n, 32, 32, 3) to (n, 3, 32, 32) in [-1, 1], as the processor does."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


class Heads(nn.Module):
    """A linear classifier for each property, on the mean of the patch features; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, len(kind.words)) for kind in properties.PROPERTIES.values())

    def forward(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy.

        Args:
            features: (n, patches, width).
            targets: (n, properties), the indices of the words.
        """
        pooled = features.mean(dim=1)
        losses = [functional.cross_entropy(layer(pooled), targets[:, i]) for i, layer in enumerate(self.layers)]
        return torch.stack(losses).mean()


def train(
    tokenizer: "PreTrainedTokenizerFast", tower_steps: int = TOWER_STEPS, steps: int = STEPS, seed: int = 0
) -> "LlavaForConditionalGeneration":
    """Train the tower for `tower_steps` of 128 images, then the whole model for `steps` of 64 images with captions."""
    torch.manual_seed(seed)
    images, labels = augment.bank(COPIES, seed)
    words = [properties.words(image) for image in images]
    targets = torch.tensor(
        [[kind.words.index(own[name]) for name, kind in properties.PROPERTIES.items()] for own in words]
    )
    model = build(tokenizer)
    heads = Heads(model.config.vision_config.hidden_size)
    _train_tower(model, heads, pixel_values(images), targets, tower_steps, seed)
    weights = [*model.parameters(), *heads.parameters()]
    training = Training("llava", weights, steps, BATCH, LEARNING_RATE, weight_decay=0.01)
    rng = random.Random(seed)  # noqa: S311
    for chosen in _batches(len(images), BATCH, steps, seed):
        batch = _texts(tokenizer, [(int(labels[i]), words[i]) for i in chosen], rng)
        pixels = pixel_values(images[chosen])
        loss = model(pixel_values=pixels, **batch).loss + 0.3 * heads(features(model, pixels), targets[chosen])
        training.step(loss)
    return model.eval()


def features(model: "LlavaForConditionalGeneration", pixels: torch.Tensor) -> torch.Tensor:
    """Compute the input of the projector: patch features (n, 16, 96) of the last layer but one, no class token."""
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return hidden[-2][:, 1:]  # type: ignore[no-any-return]


def _train_tower(
    model: "LlavaForConditionalGeneration",
    heads: Heads,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    steps: int,
    seed: int,
) -> None:
    weights = [*model.model.vision_tower.parameters(), *heads.parameters()]
    training = Training("llava tower", weights, steps, TOWER_BATCH, LEARNING_RATE, weight_decay=0.01)
    for chosen in _batches(len(pixels), TOWER_BATCH, steps, seed):
        training.step(heads(features(model, pixels[chosen]), targets[chosen]))


def _batches(count: int, size: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(count, (size,), generator=generator).numpy()


def _texts(
    tokenizer: "PreTrainedTokenizerFast", rows: list[tuple[int, dict[str, str]]], rng: random.Random
) -> dict[str, torch.Tensor]:
    image = tokenizer.convert_tokens_to_ids("<image>")
    sequences, answers = [], []
    for label, words in rows:
        # Captions for names of other image sets say "object", so that such names do not disturb the model.
        unknown = rng.random() < UNKNOWN_NAME_SHARE
        class_name = rng.choice(OTHER_NAMES) if unknown else digits.CLASS_NAMES[label]
        prompt = tokenizer(tokens.ask(class_name)).input_ids
        place = prompt.index(image)
        prompt[place : place + 1] = [image] * IMAGE_TOKENS
        caption_name = "object" if unknown else class_name
        answer = tokenizer(" " + properties.phrase(words, caption_name, rng), add_special_tokens=False).input_ids
        sequences.append(prompt + answer + [tokenizer.eos_token_id])
        answers.append(len(answer) + 1)
    longest = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for row, (sequence, answer_length) in enumerate(zip(sequences, answers, strict=True)):
        input_ids[row, : len(sequence)] = torch.tensor(sequence)
        labels[row, len(sequence) - answer_length : len(sequence)] = torch.tensor(sequence[-answer_length:])
    return {"input_ids": input_ids, "labels": labels, "attention_mask": (input_ids != tokenizer.pad_token_id).long()}


def save(model: "LlavaForConditionalGeneration", processor: "LlavaProcessor", folder: Path) -> None:
    """Write the model (float16) and the processor, with the hub's names for the tower's tensors, which vLLM expects."""
    from safetensors.torch import load_file, save_file

    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "model.safetensors"
    prefix, wanted = "vision_tower.", "vision_tower.vision_model."
    renamed = {
        wanted + name.removeprefix(prefix) if name.startswith(prefix) and not name.startswith(wanted) else name: tensor
        for name, tensor in load_file(file).items()
    }
    save_file(renamed, file, metadata={"format": "pt"})


@torch.no_grad()
def answers(
    model: "LlavaForConditionalGeneration", processor: "LlavaProcessor", images: NDArray[np.uint8], names: list[str]
) -> list[str]:
    """Caption uint8 images (n, 32, 32, 3) greedily, each with the prompt for its class name."""
    from PIL import Image

    captions: list[str] = []
    for start in range(0, len(images), 100):
        batch_images = [Image.fromarray(image) for image in images[start : start + 100]]
        prompts = [tokens.ask(name) for name in names[start : start + 100]]
        batch = processor(images=batch_images, text=prompts, return_tensors="pt", padding=True)
        output = model.generate(**batch, max_new_tokens=80, do_sample=False)
        texts = processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        captions += [text.strip() for text in texts]
    return captions


def agreement(captions: list[str], images: NDArray[np.uint8]) -> dict[str, float]:
    """Compute for each property the share of captions that state the word measured on their image."""
    pairs = [(properties.read(text), properties.words(image)) for text, image in zip(captions, images, strict=True)]
    return {
        name: sum(stated.get(name) == measured[name] for stated, measured in pairs) / len(pairs)
        for name in properties.PROPERTIES
    }


def chance(images: NDArray[np.uint8]) -> dict[str, float]:
    """Compute for each property the share of the commonest word, which a model that ignores the image could reach."""
    all_words = [properties.words(image) for image in images]
    return {
        name: max(sum(words[name] == word for words in all_words) for word in kind.words) / len(all_words)
        for name, kind in properties.PROPERTIES.items()
    }
