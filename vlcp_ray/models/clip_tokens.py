"""The tokenizer of Stable Diffusion's text encoder, and which captions it cuts."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from vlcp_ray.models.pretrained import folder, pinned

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_AT_ONCE: Final = 1024  # texts; at the limit of `count_too_long` their tokens take about 200 MB
#: What CLIP's tokenizer takes for white space: Python's without the four separators of ASCII.
_WHITE_SPACE: Final = re.compile(r"[^\S\x1c-\x1f]+")


def load_tokenizer(base_model: str, name: str = "tokenizer") -> "CLIPTokenizer":
    """Load a tokenizer of a Stable Diffusion, by the name of its subfolder."""
    from transformers import CLIPTokenizer  # takes seconds to import

    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder(base_model), **pinned(base_model), subfolder=name)
    return tokenizer


def count_too_long(tokenizer: "CLIPTokenizer", texts: Sequence[str]) -> int:
    """Count the texts that have more tokens than the text encoder reads at once, the marks of both ends included.

    Longer texts are cut where they are certainly too long: their tokens take forty times the memory of their text.
    """
    # Called directly it takes a tenth of the time, and uses all cores.
    fast = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    # The letters of a token are bytes, and Unicode's NFC makes as little as two bytes of three characters. Between two
    # tokens is at most one space.
    longest = max(map(len, fast.get_vocab()))
    limit = tokenizer.model_max_length * (2 * longest + 1)
    return sum(
        len(encoding) > tokenizer.model_max_length
        for start in range(0, len(texts), _AT_ONCE)
        for encoding in fast.encode_batch_fast([_cut(text, limit) for text in texts[start : start + _AT_ONCE]])
    )


def _cut(text: str, limit: int) -> str:
    """Cut a text to a number of characters; runs of white space count as one, as the tokenizer reads them."""
    return text if len(text) <= limit else _WHITE_SPACE.sub(" ", text)[:limit]
