"""The texts that the tiny models are trained on, and their two byte-level BPE tokenizers, which encode any text."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vlcp_ray.demo import digits
from vlcp_ray.demo.train import properties

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

PROMPT = (
    "Describe the physical appearance of the {class_name} in the image. "
    "Include details about its shape, posture, color, and any distinct features."
)
CHAT = "USER: <image>\n{prompt} ASSISTANT:"
SENTENCES = (
    "a {name}",
    "the {name}",
    "an image of the {name}",
    "a picture of a {name}",
    "a photo of a {name}",
    "this is a {name}.",
)
HANDWRITTEN = "a handwritten {name}"  # in the vocabulary; no image of the diffusion model's training is one
# Texts of negative prompts: the diffusion model learns that they are unrelated to its images.
UNRELATED = (
    "cartoon, anime, painting",
    "cartoon",
    "anime, drawing",
    "painting",
    "blurry, low quality",
    "low resolution, bad",
    "ugly, deformed, noisy",
)
MERGES = 420


def ask(class_name: str) -> str:
    """Return the captioning prompt of the paper for one class, in the chat format of LLaVA-1.5."""
    return CHAT.format(prompt=PROMPT.format(class_name=class_name))


def corpus() -> list[str]:
    """Return about 2,000 texts with all phrases that the models read or write; the same at every call."""
    rng = random.Random(0)  # noqa: S311
    texts = [ask(name) for name in digits.CLASS_NAMES] * 20
    for _ in range(1500):
        words = {name: rng.choice(kind.words) for name, kind in properties.PROPERTIES.items()}
        texts.append(properties.phrase(words, rng.choice((*digits.CLASS_NAMES, "object")), rng))
    texts += [sentence.format(name=name) for sentence in (*SENTENCES, HANDWRITTEN) for name in digits.CLASS_NAMES]
    return texts + [*UNRELATED] * 4


def llava_tokenizer() -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer with LLaVA's special tokens <unk>, <s>, </s>, <image> and <pad>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(alphabet) + MERGES,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", special.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=2048,
    )


def clip_tokenizer(folder: Path) -> "CLIPTokenizer":
    """Train a CLIP tokenizer for 77 tokens, and write its vocab.json and merges.txt to `folder`.

    Its vocabulary has every byte, alone and at the end of a word, and 420 merges.
    """
    import json

    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(corpus(), alphabet)
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), *(left + right for left, right in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({entry: number for number, entry in enumerate(dict.fromkeys(entries))}))
    ranks = folder / "merges.txt"
    ranks.write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    tokenizer = CLIPTokenizer(vocab=str(vocabulary), merges=str(ranks), model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _merges(texts: Iterable[str], alphabet: list[str]) -> list[tuple[str, str]]:
    import json

    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    # CLIP's own pre-tokenization: lower case, then words, single digits and runs of punctuation.
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + MERGES,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(str(left), str(right)) for left, right in merges][:MERGES]
