"""Knows how a LLaVA is asked to describe images: with vLLM, or with transformers as the plain reference."""

import logging
import os
from collections.abc import Sequence
from typing import Any, Final, Protocol

import torch
from PIL import Image

from vlcp_ray import config
from vlcp_ray.models.folders import folder

#: LLaVA-1.5's chat form (METHOD 2.1).
CHAT: Final = "USER: <image>\n{prompt} ASSISTANT:"

#: Images that transformers sees at once: 7B weights in float16 and the keys and values of 16 x 2,048 tokens fit 40 GB.
BATCH: Final = 16

# Below errors there are several lines an image about torch.set_num_threads when the engine is in this process.
_QUIET: Final = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
_ON_CPU: Final = {
    # An engine in this process starts sooner than one in its own, and vLLM's binding knows nothing of other actors.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; vLLM's own default is most of the machine's memory
}


class Captioner(Protocol):
    """Whatever describes images; n images, n prompts and n seeds give n texts in the same order."""

    def describe(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """What the model says of each RGB image under its prompt; seeds do nothing at temperature 0."""
        ...


def load_captioner(settings: config.Caption) -> Captioner:
    """The engine that the settings name, with its model loaded."""
    return VllmCaptioner(settings) if settings.engine == "vllm" else TransformersCaptioner(settings)


class VllmCaptioner:
    """vLLM, which batches by itself: on a GPU in the model's own precision, on a CPU in float32.

    What is said of an image depends on the images beside it only by the rounding of batched sums. On a CPU none of 256
    digits got another text in another order or in other batches, at temperatures 0 and 0.2.
    """

    def __init__(self, settings: config.Caption) -> None:
        _set_unset(_QUIET)  # read while vLLM is imported
        from vllm import LLM
        from vllm.platforms import current_platform

        self.settings = settings
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            _set_unset(_ON_CPU)
        self.llm = LLM(
            model=folder(settings.model),
            max_model_len=settings.max_model_len,
            limit_mm_per_prompt={"image": 1},
            mm_processor_cache_gb=0,  # no image comes twice
            use_tqdm_on_load=False,
            enable_prefix_caching=False,  # the image stands near the start: nothing behind it is shared
            **(_cpu_options() if on_cpu else _gpu_options()),
        )

    def describe(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """See `Captioner`. Leaves the process when the engine is dead.

        Raises:
            ValueError: a prompt with its image is longer than max_model_len.
        """
        from vllm.exceptions import VLLMClientError

        requests = [
            {"prompt": _chat(prompt), "multi_modal_data": {"image": image}}
            for prompt, image in zip(prompts, images, strict=True)
        ]
        try:
            outputs = self.llm.generate(requests, self._sampling(seeds), use_tqdm=False)
        except VLLMClientError as error:
            raise ValueError(
                f"caption: vLLM refuses a prompt; raise max_model_len if it is too long: {error}"
            ) from error
        except Exception as error:
            self._leave_if_dead(error)
            raise
        return [output.outputs[0].text.strip() for output in outputs]

    def _sampling(self, seeds: Sequence[int]) -> list[Any]:
        from vllm import SamplingParams

        said = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        return [SamplingParams(**said, seed=seed) for seed in seeds]

    def _leave_if_dead(self, error: Exception) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        # An error before the first step leaves nothing unfinished; one in a step does, and poisons later calls.
        if isinstance(error, EngineDeadError) or self.llm.llm_engine.has_unfinished_requests():
            logging.getLogger(__name__).critical("the captioning engine is dead, leaving the process", exc_info=error)
            # Ray replaces an actor whose process has ended; an error it would retry on the same dead engine for ever.
            os._exit(1)


class TransformersCaptioner:
    """transformers' `generate`, batched; the reference that vLLM is tested against.

    Sampling draws the noise of an image from its own generator, so that an image's text does not depend on its batch.
    """

    def __init__(self, settings: config.Caption) -> None:
        from transformers import AutoProcessor, LlavaForConditionalGeneration
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.settings = settings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        model = folder(settings.model)
        self.processor = AutoProcessor.from_pretrained(model)
        self.processor.tokenizer.padding_side = "left"  # all answers of a batch begin at the same place
        self.model = LlavaForConditionalGeneration.from_pretrained(model, dtype=dtype).to(self.device).eval()

    def describe(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """See `Captioner`.

        Raises:
            ValueError: a prompt with its image is longer than max_model_len.
        """
        texts: list[str] = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            texts += self._describe_batch(images[part], prompts[part], seeds[part])
        return texts

    @torch.no_grad()
    def _describe_batch(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        chats = [_chat(prompt) for prompt in prompts]
        batch = self.processor(images=list(images), text=chats, padding=True, return_tensors="pt")
        batch = batch.to(self.device, self.model.dtype)
        limits = self._limits(batch["attention_mask"].sum(dim=1).tolist())
        output = self.model.generate(
            **batch, max_new_tokens=max(limits), do_sample=False, logits_processor=self._noise(seeds)
        )
        answers = output[:, batch["input_ids"].shape[1] :].tolist()
        cut = [answer[:limit] for answer, limit in zip(answers, limits, strict=True)]
        texts = self.processor.batch_decode(cut, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    def _limits(self, lengths: Sequence[int]) -> list[int]:
        """How many tokens each answer may have, as vLLM counts them."""
        room = self.settings.max_model_len - max(lengths)
        if room < 1:
            raise ValueError(
                f"caption.max_model_len: {self.settings.max_model_len} tokens do not hold image and prompt, "
                f"which have {max(lengths)}; raise it"
            )
        return [min(self.settings.max_tokens, self.settings.max_model_len - length) for length in lengths]

    def _noise(self, seeds: Sequence[int]) -> list["GumbelNoise"]:
        return [GumbelNoise(self.settings.temperature, seeds)] if self.settings.temperature else []


class GumbelNoise:
    """A logits processor after which the largest score is a sample (the Gumbel-max trick, which vLLM uses too).

    A row draws from a generator of its own, one token after the other, on the CPU: the same noise on every device. It
    is not the noise of vLLM, whose samplers for CPU and GPU differ as well.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (n, vocabulary) of the next token, for n seeds."""
        noise = torch.empty(scores.shape)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores / self.temperature - noise.log().to(scores.device)


def _chat(prompt: str) -> str:
    return CHAT.replace("{prompt}", prompt)


def _cpu_options() -> dict[str, Any]:
    # For a prompt in two chunks vLLM takes back a draw of the seeded generator; torch's CPU generators cannot do that
    # and the engine dies. Eager mode with a given size of the key-value cache starts without a warm-up.
    return {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}


def _gpu_options() -> dict[str, Any]:
    # On one GPU the VAE of the same plan has the other fifth, as in the default of scale.py.
    return {"dtype": "auto", "gpu_memory_utilization": 0.8}


def _set_unset(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)
