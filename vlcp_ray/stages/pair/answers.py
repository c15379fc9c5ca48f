"""Count captions: those of each class, long ones, those that look wrong, and the tokens of a captioner's answers."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any, Final

import pyarrow.compute as pc

from vlcp_ray.models.clip_tokens import count_too_long, load_tokenizer
from vlcp_ray.stages.pair import ANSWERS, PROBLEMS
from vlcp_ray.store.artifact import Artifact

_REFUSAL: Final = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i apologi[sz]e|sorry, but|as an ai|i(?:'m| am) (?:unable|not able) to|"
    r"i (?:can ?not|can'?t|do not|don'?t) (?:see|view|describe|identify|provide|assist|help|have the ability))\b",
    re.IGNORECASE,
)
_BEGINNING: Final = 100  # characters in which a refusal stands
_RUN: Final = 4  # words
_FEWEST_WORDS: Final = 16
_DISTINCT: Final = 0.5  # of the runs
_FOREIGN: Final = 0.2  # of the letters
_LATIN: Final = "LATIN"
_EXAMPLES: Final = 3
_EXAMPLE_LENGTH: Final = 200  # characters
_PARTS_AT_ONCE: Final = 256  # files of PAIRS whose captions are in memory


def refuses(caption: str) -> bool:
    """Return whether one of the usual English phrases of a refusal is among the first 100 characters."""
    return bool(_REFUSAL.search(caption[:_BEGINNING].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")))


def repeats(caption: str) -> bool:
    """Return whether fewer than half of the runs of four words differ, in a caption of at least 16 words."""
    words = caption.lower().split()
    runs = [tuple(words[place : place + _RUN]) for place in range(len(words) - _RUN + 1)]
    return len(words) >= _FEWEST_WORDS and len(set(runs)) < _DISTINCT * len(runs)


def is_in_other_script(caption: str, prompt: str) -> bool:
    """Return whether more than a fifth of the letters are of scripts (Latin, CJK ...) that the prompt does not have.

    Languages of the same script are not told apart.
    """
    own = _scripts_of(prompt)
    if caption.isascii() and _LATIN in own:
        return False
    letters = _scripts(caption)
    return sum(count for script, count in letters.items() if script not in own) > _FOREIGN * letters.total()


def _scripts(text: str) -> Counter[str]:
    return Counter(_script(letter) for letter in text if letter.isalpha())


@lru_cache(maxsize=8)
def _scripts_of(prompt: str) -> frozenset[str]:
    return frozenset(_scripts(prompt))


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """Return the script of a letter: the first word of its name, as LATIN."""
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0]


def problems_of(caption: str, prompt: str) -> list[str]:
    """List the names of the problems that a caption has.

    Args:
        prompt: that of the captions; "" where it is not known, and their script is not compared.
    """
    found = {
        "refuses": refuses(caption),
        "repeats": repeats(caption),
        "other_language": bool(prompt) and is_in_other_script(caption, prompt),
    }
    return [name for name, is_so in found.items() if is_so]


def count_tokens(pairs: Artifact) -> dict[str, int]:
    """Count the answers of a model, their tokens, those that it has read for them, and those answers that were cut."""
    rows = pairs.table("answers", ANSWERS, ["tokens", "read_tokens", "is_cut"])
    names = {"answers": len(rows), "longest": pc.max(rows["tokens"]).as_py() or 0}
    sums = {name: int(pc.sum(rows[name]).as_py() or 0) for name in ("tokens", "read_tokens")}
    return {**names, **sums, "cut": int(pc.sum(rows["is_cut"]).as_py() or 0)}


def count_captions(pairs: Artifact, base_model: str, n_classes: int, prompt: str) -> dict[str, Any]:
    """Count the captions of PAIRS: by class, those that the text encoder does not read at once, and the problems.

    They are counted in the files, so that the numbers of a resumed run are those of the whole table.

    Args:
        prompt: as in `problems_of`.

    Returns:
        The facts `train`, `caption_lengths` and `caption_problems`; of each problem with the first examples by
        image_id.
    """
    tokenizer, parts = load_tokenizer(base_model), pairs.parts("pairs")
    labels, too_long, problems = Counter[int](), 0, Counter[str]()
    examples: dict[str, list[dict[str, str]]] = {name: [] for name in PROBLEMS}
    for start in range(0, len(parts), _PARTS_AT_ONCE):
        rows = pairs.read_parts(parts[start : start + _PARTS_AT_ONCE], ["image_id", "caption", "label"])
        labels.update(rows["label"].to_pylist())
        captions = rows["caption"].to_pylist()
        too_long += count_too_long(tokenizer, captions)
        for image_id, caption in zip(rows["image_id"].to_pylist(), captions, strict=True):
            for problem in problems_of(caption, prompt):
                problems[problem] += 1
                examples[problem].append({"image_id": image_id, "caption": caption[:_EXAMPLE_LENGTH]})
        for name, found in examples.items():
            examples[name] = sorted(found, key=lambda row: row["image_id"])[:_EXAMPLES]
    return {
        "train": [labels[label] for label in range(n_classes)],
        "caption_lengths": {
            "captions": labels.total(),
            "too_long": too_long,
            "encoder_tokens": tokenizer.model_max_length,
        },
        "caption_problems": {name: {"captions": problems[name], "examples": examples[name]} for name in PROBLEMS},
    }
