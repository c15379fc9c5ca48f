"""The tokenizer of Stable Diffusion's text encoder, and which captions it cuts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from vlcp_ray.models.pretrained import folder

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_AT_ONCE: Final = 4096  # texts; their tokens take up to 100 MB


def load_tokenizer(base_model: str) -> "CLIPTokenizer":
    """Load the tokenizer of a Stable Diffusion."""
    from transformers import CLIPTokenizer  # takes seconds to import

    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder(base_model), subfolder="tokenizer")
    return tokenizer


def count_too_long(tokenizer: "CLIPTokenizer", texts: Sequence[str]) -> int:
    """Count the texts that have more tokens than the text encoder reads at once, the marks of both ends included."""
    # Called directly it takes a tenth of the time, and uses all cores.
    fast = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    return sum(
        len(encoding) > tokenizer.model_max_length
        for start in range(0, len(texts), _AT_ONCE)
        for encoding in fast.encode_batch_fast(list(texts[start : start + _AT_ONCE]))
    )
