"""pair: caption and encode IMAGES(train) to PAIRS in one streaming plan."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from vlcp_ray.models import families, pretrained
from vlcp_ray.schemas import column, identity_columns
from vlcp_ray.settings import ConfigError, Positive, Settings, SizeOrZero
from vlcp_ray.sources import LAYOUTS
from vlcp_ray.stages.stage import Load, Memory, Stage, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.flops import ModelFlops
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step

PROMPT: Final = (
    "Describe the physical appearance of the {class_name} in the image. "
    "Include details about its shape, posture, color, and any distinct features."
)
#: What a caption that looks wrong does, in the words of the report: one caption, and several.
PROBLEMS: Final[Mapping[str, tuple[str, str]]] = {
    "refuses": ("refuses to describe the image", "refuse to describe the image"),
    "repeats": ("repeats itself", "repeat themselves"),
    "other_language": ("is not in the script of the prompt", "are not in the script of the prompt"),
}
_CAPTION_BYTES: Final = 600  # assumed, of a usual caption
_FLOAT16_BYTES: Final = 2
#: Settings that `hashed_settings` leaves out at their defaults.
_NEWER: Final = ("max_pixels",)
_LOOKED_AT: Final = 10_000  # files of a folder, among which a table has one of its own
#: The part of a GPU's memory, or of a share of it, that vLLM takes: its own default.
VLLM_SHARE: Final = 0.92
#: Images at a time in transformers: 7B weights in float16 and the keys and values of 16 x 2,048 tokens fit in 40 GB.
TRANSFORMERS_BATCH: Final = 16
_VLLM_GIB: Final = 1.5  # for a first batch and CUDA graphs of a model of 7B parameters, an assumption


class Caption(Settings):
    """How training images are captioned."""

    source: str = Field(
        "",
        description="a table of saved captions (parquet, JSON lines or CSV) with image_id and caption, or file_name "
        "and text; empty: run the model",
    )
    missing: Literal["reject", "describe"] = Field(
        "reject", description="images that the table lacks are rejected, or described by the model"
    )
    engine: Literal["vllm", "transformers"] = Field("vllm", description="the library that runs the model")
    model: str = Field(
        "llava-hf/llava-1.5-7b-hf",
        description="a vision-language model of a known family: hub id (also owner/name@revision), folder or "
        "demo/llava",
    )
    image_aspect_ratio: Literal["pad", "crop"] = Field(
        "pad",
        description="of LLaVA-1.5, whose images are square; pad: whole images, filled up with the mean colour; crop: "
        "their middle, as LLaVA in vLLM. Other models see whole images",
    )
    max_pixels: int = Field(
        0, ge=0, description="larger images are made smaller before the model sees them; 0: only by its own processor"
    )
    prompt: str = Field(PROMPT, description="the question; {class_name} is replaced by the name of the class")
    precision: Literal["auto", "8bit"] = Field(
        "auto",
        description="auto: half precision on a GPU; 8bit: half of its memory, by bitsandbytes with engine "
        "transformers, one image at a time",
    )
    temperature: float = Field(0.2, ge=0, description="sampling temperature; 0: greedy decoding")
    max_tokens: Positive = Field(1024, description="largest number of tokens of a caption")
    max_model_len: Positive = Field(2048, description="largest number of tokens of image, prompt and caption together")
    seed: int = Field(0, description="seed of the sampling; captions are shared by all seeds of the job")

    @property
    def uses_model(self) -> bool:
        """Whether a model captions images: all of them, or those that the table lacks."""
        return not self.source or self.missing == "describe"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{class_name}" not in self.prompt:
            raise ValueError("prompt must contain {class_name}, which is replaced by the name of the class")
        if self.missing == "describe" and not self.source:
            raise ValueError('missing = "describe" is for images that a table lacks; set source too, or leave it out')
        if self.precision == "8bit" and self.engine != "transformers":
            raise ValueError('precision = "8bit" needs engine = "transformers"; set it too')
        if self.max_tokens >= self.max_model_len:
            raise ValueError("max_tokens must be smaller than max_model_len, which also counts image and prompt")
        return self


class Encode(Settings):
    """How images are encoded to latents."""

    resolution: SizeOrZero = Field(
        0,
        description="side in pixels that images are resized to for clustering; the aspect ratio is lost; 0: the side "
        "that the base model was trained at, 512 for Stable Diffusion 1.x and models that are not known",
    )
    train_resolution: SizeOrZero = Field(
        0, description="side in pixels of the centre crop that fine-tuning trains on; 0: that of the base model"
    )
    seed: int = Field(0, description="seed of the posterior samples; latents are shared by all seeds of the job")


def format_too_long(count: int, captions: int, length: int) -> str:
    """Format how many captions the text encoder does not read at once: "3 of 40 captions are longer than ..."."""
    return (
        f"{count:,} of {captions:,} captions {'is' if count == 1 else 'are'} longer than the {length} tokens that the "
        f"text encoder reads at once: fine-tuning reads the first {length}, generation all of a text prototype"
    )


def format_tokens(count: Mapping[str, Any]) -> str:
    """Format the counts of `count_tokens` as one sentence, without its full stop; "" where no model has answered."""
    n = count.get("answers", 0)
    if not n:
        return ""
    read, tokens = count["read_tokens"], count["tokens"]
    per_second = count.get("tokens_per_second")
    rate = f", {per_second:,.0f} tokens/s with the engine's start" if per_second else ""
    whose = "was cut before its" if count["cut"] == 1 else "were cut before their"
    cut = f"; {count['cut']:,} {whose} end" if count["cut"] else ""
    return (
        f"{n:,} answers of {tokens / n:,.0f} tokens on average and {count['longest']:,} at most{rate}; image and "
        f"prompt are {read / n:,.0f} tokens, {read / (read + tokens):.0%} of all{cut}"
    )


def format_problems(found: Mapping[str, Any], captions: int) -> Iterator[tuple[str, Sequence[Mapping[str, str]]]]:
    """Yield a sentence, without its full stop, and the examples, for each problem that a caption has."""
    for name, (one, several) in PROBLEMS.items():
        count = found.get(name, {}).get("captions", 0)
        if count:
            yield f"{count:,} of {captions:,} captions {one if count == 1 else several}", found[name]["examples"]


def check_source(source: str) -> None:
    """Refuse a local table of captions that does not exist, or a folder without parquet files, before it is hashed.

    Raises:
        ConfigError: names the fix.
    """
    path = Path(source).expanduser()
    if not source or "://" in source:
        return
    if not path.exists():
        raise ConfigError(f"caption.source: there is no table {source!r}; give its folder or file")
    if path.is_dir() and not any(file.suffix == ".parquet" for file in islice(path.rglob("*"), _LOOKED_AT)):
        raise ConfigError(
            f"caption.source: the folder {source!r} has no parquet files; give a table's folder, as the folder pairs "
            "of a run, or its file"
        )


def check_pairs(pairs: Mapping[str, Any], images: Mapping[str, Any], ipc: int) -> None:
    """Check that the classes of PAIRS can be distilled: images without a caption or a latent were rejected.

    Args:
        pairs, images: the manifests of PAIRS and IMAGES.
        ipc: images per class of the largest set.

    Raises:
        ConfigError: a class has fewer rows than `ipc`. The message names the class and the fix.
    """
    names, left = images["class_names"], pairs.get("train", images["train"])
    few = [name for name, count in zip(names, left, strict=True) if count < ipc]
    if few:
        count, total = (counts[names.index(few[0])] for counts in (left, images["train"]))
        raise ConfigError(
            f"ipc: class {few[0]!r} has {count} of its {total} training images left in PAIRS, fewer than ipc = {ipc}"
            f"{f' (and {len(few) - 1} more classes)' if few[1:] else ''}: the others have no caption or no latent, as "
            'REJECTED says; add captions to caption.source, set caption.missing = "describe", lower ipc, or leave the '
            "class out of ingest.classes"
        )


def pairs_schema(latent: tuple[int, int, int], moments: tuple[int, int, int], views: int = 2) -> pa.Schema:
    """Build the schema of PAIRS.

    Args:
        latent: shape of a latent, (c, h, w).
        moments: shape of the posterior moments of a training view, (2c, h', w').
        views: training views per image: 2 if fine-tuning flips images at random, else 1.
    """
    return pa.schema(
        [
            *identity_columns(),
            column("caption", pa.string(), "caption of the image"),
            column("latent", pa.fixed_shape_tensor(pa.float16(), latent), "VAE posterior sample x scaling factor"),
            column(
                "train_moments",
                pa.fixed_shape_tensor(pa.float16(), (views, *moments)),
                "VAE posterior mean and logvar of the training view: plain, and flipped if finetune.random_flip",
            ),
        ]
    )


#: One row for each caption that a model has written.
ANSWERS: Final = pa.schema(
    [
        column("image_id", pa.string(), "id of the image"),
        column("tokens", pa.int32(), "tokens of the model's answer, with the one that ends it"),
        column("read_tokens", pa.int32(), "tokens of image and prompt, which the model reads before it answers"),
        column("is_cut", pa.bool_(), "whether the answer was cut at max_tokens or max_model_len"),
    ]
)
#: The schema for reading all columns but the tensors, whose shapes here are placeholders.
PAIRS: Final = pairs_schema((1, 1, 1), (1, 1, 1))

CAPTION: Final = Work(
    "caption",
    "caption",
    "vlcp_ray.stages.pair.bench:caption",
    on_cpu=(0.1, 10.0),
    # 1,366 tokens/s of an 8B Llama (16 GFLOP each) in vLLM on an A40 of 150 TFLOPS: databasemart.com, vLLM A40
    # benchmark, 50 requests at once. Loading 7B weights and warming up an engine is assumed to take two minutes.
    on_gpu=(0.15, 120.0),
    is_published=True,
    retains_memory=True,
    model=lambda job: pretrained.identify(job.caption.model, ""),
    wanted=lambda job: job.caption.uses_model,
)
ENCODE: Final = Work(
    "encode",
    "encode",
    "vlcp_ray.stages.pair.bench:encode",
    on_cpu=(0.5, 6.0),
    on_gpu=(0.11, 30.0),  # 107 TFLOP/s of 989 on an H200: tests/benchmarks/README.md
    retains_memory=True,
    model=lambda job: pretrained.identify(job.base_model, "vae"),
)


def hashed_settings(job: "Job", base_model: str) -> dict[str, Any]:
    """Collect the settings that determine PAIRS.

    Args:
        base_model: content hash of the base model.
    """
    settings, caption = job.caption, dict[str, Any]()
    if settings.uses_model:
        model = pretrained.content_hash(settings.model)
        newer = {name for name in _NEWER if getattr(settings, name) == Caption.model_fields[name].default}
        caption = settings.model_dump(exclude={"missing", *newer}) | {"model": model}
    if settings.source:
        caption["source"] = pretrained.content_hash(settings.source)
    return {
        "caption": caption,
        "encode": job.encode.model_dump(),
        "flip": job.finetune.random_flip,
        "base_model": base_model,
    }


def encode_flops(job: "Job", flops: "ModelFlops") -> float:
    """Count the operations of the VAE per image: training views, and the square view unless it is a training view."""
    crop, square = (
        flops.encode(pretrained.expected_latent_shape(job.base_model, resolution)[1])
        for resolution in (job.encode.train_resolution, job.encode.resolution)
    )
    # Embedded images are square.
    is_same_view = job.ingest.source in LAYOUTS and job.encode.train_resolution == job.encode.resolution
    return (1 + job.finetune.random_flip) * crop + (0.0 if is_same_view else square)


def _loads(inputs: "CostInputs", _: Sequence["Step"]) -> Iterator[Load]:
    count, job = inputs.images.train, inputs.job
    if job.caption.uses_model:
        each, block = inputs.models.caption(job.caption.prompt, inputs.caption_tokens), inputs.scale.rows_per_block
        yield Load(CAPTION, count, count * each, units=count, largest=min(block, count) * each)
    yield Load(ENCODE, 0 if job.caption.uses_model else count, count * encode_flops(job, inputs.models), units=count)


def _disk(inputs: "CostInputs", _: Sequence["Step"]) -> float:
    job = inputs.job
    channels, height, width = inputs.latent_shape(job.encode.resolution)
    train_channels, train_height, train_width = inputs.latent_shape(job.encode.train_resolution)
    # mean and logvar of each training view
    moments = (1 + job.finetune.random_flip) * 2 * train_channels * train_height * train_width
    row = _FLOAT16_BYTES * (channels * height * width + moments) + _CAPTION_BYTES
    return inputs.images.train * row / 2**30


def _memory(job: "Job", models: "ModelMemory", scale: "Scale") -> Iterator[Memory]:
    settings = job.caption
    if settings.uses_model:
        is_vllm, is_8bit = settings.engine == "vllm", settings.precision == "8bit"
        count = 1 if is_vllm or is_8bit else TRANSFORMERS_BATCH
        gib, least = (
            models.caption(is_8bit, images * settings.max_model_len) + (_VLLM_GIB if is_vllm else 0.0)
            for images in (count, 1)
        )
        fix = "give captions in a table (caption.source)"
        if not is_8bit:
            eight_bit = models.caption(True, settings.max_model_len)
            fix += (
                f", hold the model in 8 bits (caption.engine=transformers, caption.precision=8bit: {eight_bit:.1f} GiB)"
            )
        fix += ", name a smaller captioner (caption.model), or use larger GPUs"
        yield Memory("caption", "caption.model", "caption", gib, least, fix, is_limited=is_vllm)
    side = max(
        pretrained.expected_latent_shape(job.base_model, resolution)[1]
        for resolution in (job.encode.resolution, job.encode.train_resolution)
    )
    gib, least = (models.encode(images, side) for images in (scale.encode.batch_size, 1))
    fix = "give the pool a larger share of a GPU (num_gpus in the scale file), or use larger GPUs"
    yield Memory("encode", "encode.resolution", "encode", gib, least, fix)


def _models(job: "Job") -> Iterator[pretrained.Use]:
    yield pretrained.Use("base_model", job.base_model, families.STABLE_DIFFUSION)
    if job.caption.uses_model:
        yield pretrained.Use("caption.model", job.caption.model, families.CAPTIONER)


def check_captioner(caption: Caption) -> None:
    """Refuse a setting that the model does not have, and a model whose processor lacks a package.

    Raises:
        ConfigError: names the setting and the fix.
    """
    config = pretrained.captioner_config(caption.model)
    if caption.image_aspect_ratio != "pad" and not families.is_llava(config):
        raise ConfigError(
            "caption.image_aspect_ratio is of LLaVA-1.5 only; leave it out: other models see whole images"
        )
    for package in families.PACKAGES.get(config["model_type"], ()):
        if find_spec(package) is None:
            raise ConfigError(
                f"caption.model: the processor of {caption.model} needs the package {package}: pip install {package}"
            )


def check_cpu(caption: Caption) -> None:
    """Refuse a model of which vLLM computes something else on CPUs.

    Raises:
        ConfigError: names the fix.
    """
    family = pretrained.captioner_config(caption.model).get("model_type")
    if caption.engine == "vllm" and family in families.BIDIRECTIONAL:
        title, _ = families.CAPTIONERS[family]
        raise ConfigError(
            f"caption.engine: on CPUs vLLM lets the parts of an image attend to earlier ones only, which {title} does "
            "not; set caption.engine=transformers, or use a GPU"
        )


def _check_scale(job: "Job", scale: "Scale") -> None:
    if job.caption.uses_model and not scale.caption.num_gpus:
        check_cpu(job.caption)


def _check(job: "Job") -> None:
    if job.caption.uses_model:
        check_captioner(job.caption)
    if job.caption.source:
        from vlcp_ray.stages.pair.saved_captions import open_captions

        open_captions(job.caption.source)


STAGE: Final = Stage(
    "pair",
    version=2,
    summary="IMAGES -> PAIRS + REJECTED: captions and latents",
    tables={"pairs": pairs_schema((4, 64, 64), (8, 64, 64)), "answers": ANSWERS},
    files=("rejected",),
    pools=("caption", "encode"),
    row_wise=True,
    output="pairs",
    works=(CAPTION, ENCODE),
    loads=_loads,
    disk=_disk,
    memory=_memory,
    models=_models,
    check=_check,
    check_scale=_check_scale,
)
