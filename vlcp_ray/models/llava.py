"""Caption images with LLaVA, in vLLM, or in transformers as the reference."""

import logging
import os
from collections.abc import Sequence
from typing import Any, Final, Protocol

import torch
from PIL import Image

from vlcp_ray.models.pretrained import folder
from vlcp_ray.stages import pair

#: LLaVA-1.5's chat template.
CHAT_TEMPLATE: Final = "USER: <image>\n{prompt} ASSISTANT:"

#: Batch size in transformers: 7B weights in float16 and the keys and values of 16 x 2,048 tokens fit in 40 GB.
BATCH: Final = 16

# At lower levels vLLM logs several lines per image about torch.set_num_threads when the engine is in this process.
_QUIET: Final = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
_ON_CPU: Final = {
    # An engine in this process starts faster than one in its own process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM would bind to cores that other actors use
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; vLLM's own default is most of the machine's memory
}


class Captioner(Protocol):
    """A loaded captioning model."""

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Caption n RGB images with n prompts and n seeds, in this order; at temperature 0 the seeds have no effect."""
        ...


def load_captioner(settings: pair.Caption) -> Captioner:
    """Load the model in the engine of the settings."""
    return VllmCaptioner(settings) if settings.engine == "vllm" else TransformersCaptioner(settings)


class VllmCaptioner:
    """Caption with vLLM, which does its own batching: on a GPU in the model's own precision, on a CPU in float32.

    A caption depends on the other images of the batch only through the rounding of batched sums. On a CPU none of the
    captions of 256 digits changed in another order or in other batches, at temperatures 0 and 0.2.
    """

    def __init__(self, settings: pair.Caption) -> None:
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
            mm_processor_cache_gb=0,  # no image is captioned twice
            use_tqdm_on_load=False,
            enable_prefix_caching=False,  # the image is near the start of the prompt: nothing after it is shared
            **(_cpu_options() if on_cpu else _gpu_options()),
        )

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """See `Captioner`. Ends the process when the engine is dead.

        Raises:
            ValueError: vLLM rejects a prompt, for example because prompt and image are longer than max_model_len.
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
                f"caption: vLLM rejected a prompt; raise caption.max_model_len if it is too long: {error}"
            ) from error
        except Exception as error:
            self._exit_if_dead(error)
            raise
        return [output.outputs[0].text.strip() for output in outputs]

    def _sampling(self, seeds: Sequence[int]) -> list[Any]:
        from vllm import SamplingParams

        shared = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        return [SamplingParams(**shared, seed=seed) for seed in seeds]

    def _exit_if_dead(self, error: Exception) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        # An error before the first step leaves no unfinished request; one during a step does, and later calls fail.
        if isinstance(error, EngineDeadError) or self.llm.llm_engine.has_unfinished_requests():
            logging.getLogger(__name__).critical("the captioning engine is dead, ending the process", exc_info=error)
            # Ray restarts an actor whose process has ended; after an error it would retry on the same dead engine.
            os._exit(1)


class TransformersCaptioner:
    """Caption with transformers' `generate` in batches; the reference that vLLM is tested against.

    Each image's sampling noise is from its own generator, so that its caption does not depend on its batch.
    """

    def __init__(self, settings: pair.Caption) -> None:
        from transformers import AutoProcessor, LlavaForConditionalGeneration
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.settings = settings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        model = folder(settings.model)
        self.processor = AutoProcessor.from_pretrained(model)
        self.processor.tokenizer.padding_side = "left"  # all answers of a batch begin at the same position
        self.model = LlavaForConditionalGeneration.from_pretrained(model, dtype=dtype).to(self.device).eval()

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """See `Captioner`.

        Raises:
            ValueError: prompt and image are longer than max_model_len.
        """
        texts: list[str] = []
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            texts += self._caption_batch(images[rows], prompts[rows], seeds[rows])
        return texts

    @torch.no_grad()
    def _caption_batch(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        chats = [_chat(prompt) for prompt in prompts]
        batch = self.processor(images=list(images), text=chats, padding=True, return_tensors="pt")
        batch = batch.to(self.device, self.model.dtype)
        limits = self._token_limits(batch["attention_mask"].sum(dim=1).tolist())
        output = self.model.generate(
            **batch, max_new_tokens=max(limits), do_sample=False, logits_processor=self._sampling(seeds)
        )
        answers = output[:, batch["input_ids"].shape[1] :].tolist()
        answers = [answer[:limit] for answer, limit in zip(answers, limits, strict=True)]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    def _token_limits(self, lengths: Sequence[int]) -> list[int]:
        """Compute the maximum number of tokens of each answer, as vLLM does, from the lengths of the prompts."""
        room = self.settings.max_model_len - max(lengths)
        if room < 1:
            raise ValueError(
                f"caption.max_model_len: image and prompt have {max(lengths)} tokens, which leaves none of "
                f"{self.settings.max_model_len} for the caption; raise it"
            )
        return [min(self.settings.max_tokens, self.settings.max_model_len - length) for length in lengths]

    def _sampling(self, seeds: Sequence[int]) -> list["GumbelNoise"]:
        return [GumbelNoise(self.settings.temperature, seeds)] if self.settings.temperature else []


class GumbelNoise:
    """A logits processor that adds noise so that the largest score is a sample (Gumbel-max trick, as in vLLM).

    Each row has its own generator, on the CPU: the noise is the same on every device. It is not the noise of vLLM,
    whose samplers for CPU and GPU differ as well.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return noisy scores (n, vocabulary) of the next token, for n seeds."""
        noise = torch.empty(scores.shape)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores / self.temperature - noise.log().to(scores.device)


def _chat(prompt: str) -> str:
    return CHAT_TEMPLATE.replace("{prompt}", prompt)


def _cpu_options() -> dict[str, Any]:
    # For a prompt in two chunks vLLM rewinds the seeded generator; torch's CPU generators cannot be rewound and the
    # engine dies. Eager mode with a key-value cache of given size starts without a warm-up.
    return {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}


def _gpu_options() -> dict[str, Any]:
    # On a single GPU the VAE of the same Ray Data plan uses the other fifth, as in the default of scale.py.
    return {"dtype": "auto", "gpu_memory_utilization": 0.8}


def _set_unset(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)
