"""Caption images with a vision-language model, in vLLM, or in transformers as the reference."""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, Protocol

import torch
from PIL import Image

from vlcp_ray.models.batches import Batches
from vlcp_ray.models.chats import is_llava, load_chat, load_processor
from vlcp_ray.models.pretrained import folder, pinned
from vlcp_ray.stages import pair

# At lower levels vLLM logs several lines per image about torch.set_num_threads when the engine is in this process.
_QUIET: Final = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
#: What vLLM says of an image or a prompt with too many tokens: its text alone, with its image, or its image alone.
_TOO_LONG: Final = ("maximum context length", "longer than the maximum", "encoder cache size")
_ON_CPU: Final = {
    # An engine in this process starts faster than one in its own process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM would bind to cores that other actors use
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; vLLM's own default is most of the machine's memory
}


class Answer(NamedTuple):
    """A model's answer.

    Args:
        text: without white space at its ends, and without what the model thought before it.
        tokens: of the answer, with the one that ends it.
        read_tokens: of image and prompt together.
        is_cut: whether it was cut at max_tokens or max_model_len, before its end.
        error: why there is none, for an image with more tokens than the model may read; else "".
    """

    text: str
    tokens: int
    read_tokens: int
    is_cut: bool
    error: str = ""


def too_long(settings: pair.Caption) -> Answer:
    """Return the answer for an image that leaves no token of max_model_len for a caption."""
    detail = f"image and prompt have {settings.max_model_len} tokens or more: raise caption.max_model_len"
    return Answer("", 0, 0, False, f"{detail}, or set caption.max_pixels")


class Captioner(Protocol):
    """A loaded captioning model."""

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[Answer]:
        """Caption n RGB images with n prompts and n seeds, in this order; at temperature 0 the seeds have no effect."""
        ...


def load_captioner(settings: pair.Caption, gpus: float = 1.0) -> Captioner:
    """Load the model in the engine of the settings.

    Args:
        gpus: the share of a GPU that vLLM may take.
    """
    return VllmCaptioner(settings, gpus) if settings.engine == "vllm" else TransformersCaptioner(settings)


class VllmCaptioner:
    """Caption with vLLM, which does its own batching: on a GPU in the model's own precision, on a CPU in float32.

    Calls from several threads share the engine, so that it has the images of the next call before it has finished those
    of the last. A caption depends on the other images only through the rounding of batched sums. On a CPU none of the
    captions of 256 digits changed in another order or in other batches, at temperatures 0 and 0.2.
    """

    def __init__(self, settings: pair.Caption, gpus: float = 1.0) -> None:
        """Load the model.

        Args:
            gpus: the share of a GPU that the engine may take.

        Raises:
            ConfigError: vLLM does not compute this model on CPUs.
        """
        _set_unset(_QUIET)  # read while vLLM is imported
        from vllm import LLM
        from vllm.platforms import current_platform

        self.settings, self.chat = settings, load_chat(settings)
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            pair.check_cpu(settings)
            _set_unset(_ON_CPU)
        self.llm = LLM(
            model=folder(settings.model),
            **pinned(settings.model),
            max_model_len=settings.max_model_len,
            limit_mm_per_prompt={"image": 1, "video": 0},  # without it, memory is reserved for a video
            mm_processor_kwargs=dict(self.chat.processor_options) or None,
            mm_processor_cache_gb=0,  # no image is captioned twice
            use_tqdm_on_load=False,
            enable_prefix_caching=False,  # the image is near the start of the prompt: nothing after it is shared
            **(_cpu_options() if on_cpu else _gpu_options(gpus)),
        )
        self.engine = EngineThread(self.llm)

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[Answer]:
        """See `Captioner`. May be called from several threads. Ends the process when the engine is dead.

        Raises:
            ValueError: vLLM rejects a prompt for another reason than its length.
        """
        requests = [
            {"prompt": self.chat.write(prompt), "multi_modal_data": {"image": self.chat.view(image)}}
            for prompt, image in zip(prompts, images, strict=True)
        ]
        answers = [self.engine.submit(*one) for one in zip(requests, self._sampling(seeds), strict=True)]
        return [self._answer(answer) for answer in answers]

    def _answer(self, waiting: "Future[Any]") -> Answer:
        from vllm.exceptions import VLLMClientError

        try:
            output = waiting.result()
        except VLLMClientError as error:
            if any(words in str(error) for words in _TOO_LONG):
                return too_long(self.settings)
            raise ValueError(f"caption: vLLM rejected a prompt: {error}") from error
        (one,) = output.outputs
        text = self.chat.read(one.text)
        return Answer(text, len(one.token_ids), len(output.prompt_token_ids), one.finish_reason == "length")

    def _sampling(self, seeds: Sequence[int]) -> list[Any]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        shared = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        return [SamplingParams(**shared, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY) for seed in seeds]


class EngineThread:
    """Run vLLM's engine in a thread of its own, which takes requests at any time: `LLM.generate` waits for all of them.

    Args:
        busy, idle: seconds in which the engine had requests, and in which it waited for some after the first.
    """

    def __init__(self, llm: Any) -> None:
        self.llm, self.engine = llm, llm.llm_engine
        self.busy = self.idle = 0.0
        self._requests: SimpleQueue[tuple[Any, Any, Future[Any]]] = SimpleQueue()
        self._answers: dict[str, Future[Any]] = {}
        self._count = count()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, prompt: Mapping[str, Any], sampling: Any) -> "Future[Any]":
        """Give the engine a request; the result is its output, or the error of vLLM about the prompt."""
        answer: Future[Any] = Future()
        self._requests.put((prompt, sampling, answer))
        return answer

    def _run(self) -> None:
        while True:
            start = time.perf_counter()
            self._add(*self._requests.get())
            self.idle += time.perf_counter() - start if self.busy else 0.0
            start = time.perf_counter()
            try:
                while self.engine.has_unfinished_requests():
                    self._add_waiting()
                    for output in self.engine.step():
                        self._answers.pop(output.request_id).set_result(output)
            except Exception as error:
                self._fail(error)
            self.busy += time.perf_counter() - start

    def _add_waiting(self) -> None:
        with suppress(Empty):
            while True:
                self._add(*self._requests.get_nowait())

    def _add(self, prompt: Mapping[str, Any], sampling: Any, answer: "Future[Any]") -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        name = str(next(self._count))
        try:
            self.engine.add_request(name, self.llm._preprocess_cmpl_one(prompt), sampling)
        except EngineDeadError as error:
            self._fail(error)
        except Exception as error:  # of this prompt
            answer.set_exception(error)
        else:
            self._answers[name] = answer

    def _fail(self, error: Exception) -> None:
        """End the process where the engine is dead, or a step has failed: all later ones would fail as well."""
        logging.getLogger(__name__).critical("the captioning engine is dead, ending the process", exc_info=error)
        # Ray restarts an actor whose process has ended; after an error it would retry on the same dead engine.
        os._exit(1)


class TransformersCaptioner:
    """Caption with transformers' `generate` in batches; the reference that vLLM is tested against.

    Each image's sampling noise is from its own generator, so that its caption does not depend on its batch.
    """

    def __init__(self, settings: pair.Caption) -> None:
        from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.settings = settings
        self.is_llava = is_llava(settings.model)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # The newer models were trained in bfloat16, beyond whose range of numbers float16 ends.
        on_gpu: Any = torch.float16 if self.is_llava or settings.precision == "8bit" else "auto"
        dtype = on_gpu if self.device == "cuda" else torch.float32
        self.processor = load_processor(settings.model)
        self.processor.tokenizer.padding_side = "left"  # all answers of a batch begin at the same position
        options: dict[str, Any] = {"dtype": dtype}
        if settings.precision == "8bit":
            # bitsandbytes converts weights while they are loaded, on the device, and multiplies in half precision.
            options |= {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": self.device}}
        model = AutoModelForImageTextToText.from_pretrained(
            folder(settings.model), **pinned(settings.model), **options
        ).eval()
        self.model = model if settings.precision == "8bit" else model.to(self.device)
        self.chat = load_chat(settings)
        for name, value in self.chat.processor_options.items():
            setattr(self.processor.image_processor, name, value)
        self.ends = self._end_tokens()
        # In 8 bits a column that is large in one row is multiplied in half precision for all rows of a batch.
        self.batches = Batches(
            1 if settings.precision == "8bit" else pair.TRANSFORMERS_BATCH, "caption.engine = transformers"
        )

    def _end_tokens(self) -> list[int]:
        """List the tokens that end an answer, as vLLM does: those of generation_config.json and the tokenizer's."""
        ends = self.model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        own = self.processor.tokenizer.eos_token_id
        return ends if self.is_llava or own is None or own in ends else [*ends, own]

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[Answer]:
        """See `Captioner`."""
        views = [self.chat.view(image) for image in images]

        def batch(rows: range, _: int) -> list[Answer]:
            part = slice(rows.start, rows.stop)
            return self._caption_batch(views[part], prompts[part], seeds[part])

        return [answer for answers in self.batches.run(len(images), batch) for answer in answers]

    @torch.no_grad()
    def _caption_batch(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Answer]:
        chats = [self.chat.write(prompt) for prompt in prompts]
        batch = self.processor(images=[[image] for image in images], text=chats, padding=True, return_tensors="pt")
        batch = batch.to(self.device, self.model.dtype)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        limits = self._token_limits(lengths)
        if min(limits) < 1:
            fits = [row for row, limit in enumerate(limits) if limit > 0]
            good = ([images[row] for row in fits], [prompts[row] for row in fits], [seeds[row] for row in fits])
            answers = dict(zip(fits, self._caption_batch(*good) if fits else [], strict=True))
            return [answers.get(row, too_long(self.settings)) for row in range(len(images))]
        output = self.model.generate(
            **batch,
            max_new_tokens=max(limits),
            do_sample=False,
            repetition_penalty=1.0,  # some models have another one in generation_config.json, which vLLM does not use
            eos_token_id=self.ends or None,
            logits_processor=self._sampling(seeds),
        )
        written = output[:, batch["input_ids"].shape[1] :].tolist()
        written = [self._until_end(tokens[:limit]) for tokens, limit in zip(written, limits, strict=True)]
        texts = self.processor.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [
            Answer(self.chat.read(text), len(tokens), length, not tokens or tokens[-1] not in self.ends)
            for text, tokens, length in zip(texts, written, lengths, strict=True)
        ]

    def _until_end(self, tokens: list[int]) -> list[int]:
        """Cut the padding off that follows the token that ends an answer."""
        return tokens[: next((place + 1 for place, token in enumerate(tokens) if token in self.ends), len(tokens))]

    def _token_limits(self, lengths: Sequence[int]) -> list[int]:
        """Compute the maximum number of tokens of each answer, as vLLM does, from the lengths of the prompts."""
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


def _cpu_options() -> dict[str, Any]:
    # For a prompt in two chunks vLLM rewinds the seeded generator; torch's CPU generators cannot be rewound and the
    # engine dies. Eager mode with a key-value cache of given size starts without a warm-up.
    return {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}


def _gpu_options(gpus: float) -> dict[str, Any]:
    """Return the options on a GPU: the rest of its memory is for the VAE of the same plan, and for CUDA's own."""
    return {"dtype": "auto", "gpu_memory_utilization": round(pair.VLLM_SHARE * min(1.0, gpus), 3)}


def _set_unset(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)
