"""Caption images with a vision-language model, in vLLM, or in transformers as the reference."""

import logging
import math
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

from vlcp_ray.models import families
from vlcp_ray.models.batches import Batches
from vlcp_ray.models.pretrained import folder, pinned
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import pair

#: The prompt of LLaVA-1.5; all other models have a chat template.
CHAT_TEMPLATE: Final = "USER: <image>\n{prompt} ASSISTANT:"
#: The end of what a model thinks before it answers, where its chat template cannot turn that off.
_END_OF_THOUGHT: Final = "</think>"
_MAX_RATIO: Final = 100  # of the sides of an image; Qwen's processor refuses more than 200

# At lower levels vLLM logs several lines per image about torch.set_num_threads when the engine is in this process.
_QUIET: Final = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
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
    """

    text: str
    tokens: int
    read_tokens: int
    is_cut: bool


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
        """
        _set_unset(_QUIET)  # read while vLLM is imported
        from vllm import LLM
        from vllm.platforms import current_platform

        options: dict[str, Any] = {}
        self.settings, self.chat = settings, load_chat(settings)
        if self.chat.processor_options:
            options["mm_processor_kwargs"] = dict(self.chat.processor_options)
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            _set_unset(_ON_CPU)
        self.llm = LLM(
            model=folder(settings.model),
            **pinned(settings.model),
            max_model_len=settings.max_model_len,
            limit_mm_per_prompt={"image": 1},
            mm_processor_cache_gb=0,  # no image is captioned twice
            use_tqdm_on_load=False,
            enable_prefix_caching=False,  # the image is near the start of the prompt: nothing after it is shared
            **(_cpu_options() if on_cpu else _gpu_options(gpus)),
            **options,
        )
        self.engine = EngineThread(self.llm)

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[Answer]:
        """See `Captioner`. May be called from several threads. Ends the process when the engine is dead.

        Raises:
            ValueError: vLLM rejects a prompt, for example because prompt and image are longer than max_model_len.
        """
        from vllm.exceptions import VLLMClientError

        requests = [
            {"prompt": self.chat.write(prompt), "multi_modal_data": {"image": self.chat.view(image)}}
            for prompt, image in zip(prompts, images, strict=True)
        ]
        answers = [self.engine.submit(*one) for one in zip(requests, self._sampling(seeds), strict=True)]
        try:
            return [self._answer(answer.result()) for answer in answers]
        except VLLMClientError as error:
            raise ValueError(
                "caption: vLLM rejected a prompt; if it is too long, raise caption.max_model_len or set "
                f"caption.max_pixels: {error}"
            ) from error

    def _answer(self, output: Any) -> Answer:
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
        """Return the answer."""
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
    return bool(config["model_type"] == families.LLAVA)


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
            ConfigError: the model has none, or image_aspect_ratio is set, which is of LLaVA-1.5.
        """
        if settings.image_aspect_ratio != "pad":
            raise ConfigError(
                "caption.image_aspect_ratio is of LLaVA-1.5 only; leave it out: other models see whole images"
            )
        self.limit = settings.max_pixels
        self.processor = load_processor(settings.model)
        tokenizer = self.processor.tokenizer
        # Engines add the first token of a text; a template that writes it too would double it.
        first = tokenizer("")["input_ids"][:1]
        self.first = tokenizer.bos_token if first and first == [tokenizer.bos_token_id] else ""
        if not self.processor.chat_template:
            raise ConfigError(f"caption.model: {settings.model} has no chat template; give a model tuned to answer")
        # Processors warn of settings that their template does not know.
        self.options = {name: False for name in ("enable_thinking",) if name in str(self.processor.chat_template)}

    def write(self, prompt: str) -> str:
        """See `Chat`."""
        parts = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, **self.options
        )
        return text.removeprefix(self.first)

    @property
    def processor_options(self) -> Mapping[str, Any]:
        """See `Chat`. Idefics3 enlarges every image to a given longest side, and cuts it into tiles."""
        images = self.processor.image_processor
        tile = getattr(images, "max_image_size", None)
        if not self.limit or not tile or "longest_edge" not in tile:
            return {}
        side = max(1, math.isqrt(self.limit) // tile["longest_edge"]) * tile["longest_edge"]
        return {"size": {"longest_edge": min(side, images.size["longest_edge"])}}

    def view(self, image: Image.Image) -> Image.Image:
        """Shrink the image to max_pixels, and pad one that is thinner than any processor takes."""
        image = shrink(image, self.limit)
        least = math.ceil(max(image.size) / _MAX_RATIO)
        if min(image.size) >= least:
            return image
        return pad(image, (max(image.width, least), max(image.height, least)), (0, 0, 0))

    def read(self, text: str) -> str:
        """See `Chat`. Of a character that was cut no byte is left, in vLLM as in transformers."""
        return text.rpartition(_END_OF_THOUGHT)[2].rstrip("\N{REPLACEMENT CHARACTER}").strip()


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
        if "size" in self.chat.processor_options:
            self.processor.image_processor.size = self.chat.processor_options["size"]
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
        """See `Captioner`.

        Raises:
            ValueError: prompt and image are longer than max_model_len.
        """
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
        room = self.settings.max_model_len - max(lengths)
        if room < 1:
            raise ValueError(
                f"caption.max_model_len: image and prompt have {max(lengths)} tokens, which leaves none of "
                f"{self.settings.max_model_len} for the caption; raise it, or set caption.max_pixels"
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
