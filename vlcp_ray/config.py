"""Knows the job file: every setting as a frozen, typed field, its default and the rules between fields."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from vlcp_ray.settings import ConfigError, Settings, build, read_toml

Positive: TypeAlias = Annotated[int, Field(gt=0)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Size: TypeAlias = Annotated[int, Field(gt=0, multiple_of=8, description="pixels; the VAE works on blocks of 8")]
Layout = Literal["digits", "folder", "parquet", "webdataset", "tiny-imagenet"]
Network = Literal["ConvNet-3", "ConvNet-4", "ConvNet-5", "ConvNet-6", "ResNetAP-10", "ResNet-18", "ResNet-18-modified"]
Protocol = Literal["minimax", "rded"]
Method = Literal[
    "vlcp",  # this method; then its ablations: without the text prototype, without fine-tuning, without both
    "vlcp-name",
    "base-text",
    "base-name",
    "d4m",
    "rded",
    "herding",
    "k-center",
    "random",
    "centroid",  # the image prototypes decoded without denoising
    "full",
]

PROMPT: Final = (
    "Describe the physical appearance of the {class_name} in the image. "
    "Include details about its shape, posture, color, and any distinct features."
)


def _different(settings: Settings, *names: str) -> None:
    for name in names:
        values = getattr(settings, name)
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be a list of different values, at least one, not {list(values)}")


class Expect(Settings):
    """What an image set should have, for the plan and for a warning; nothing is computed from it."""

    train: Positive = Field(description="training images")
    val: Positive
    classes: Positive
    gib: float = Field(gt=0, description="GiB of the wanted image files")


class Ingest(Settings):
    """Which labelled images."""

    source: str = Field("digits", description="a folder, a file or a URI (s3://, gs://, hf://); `digits` is embedded")
    layout: Layout | Literal["auto"] = Field("auto", description="auto: recognised by looking")
    classes: tuple[str, ...] = Field(
        (),
        description="wnids or names, or a list by its name: imagenette, imagewoof, imageidc, imagenet100; empty: all",
    )
    class_list: str = Field(
        "", description="what label numbers mean where the set does not say: imagenet1k, or a file of `key<TAB>name`"
    )
    val_fraction: Fraction = Field(
        0.0, description="share of train to validate on; the source's own val stays unread. 0: the source's own val"
    )
    max_pixels: Positive = Field(64_000_000, description="no photograph of ImageNet has as many; a bomb has more")
    max_bytes: Positive = Field(64 * 2**20, description="of an image file")
    expect: Expect | None = None
    max_rejected: Fraction = Field(0.01, description="share of rows; more rejected ones than this stop the run")

    @field_validator("classes", mode="before")
    @classmethod
    def _one_class_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Caption(Settings):
    """How every training image is described (METHOD 2.1)."""

    source: str = Field("", description="a table with image_id and caption to take instead of running a model")
    engine: Literal["vllm", "transformers"] = "vllm"
    model: str = Field("llava-hf/llava-1.5-7b-hf", description="a LLaVA: hub id, folder, or demo/llava")
    prompt: str = Field(PROMPT, description="must hold {class_name}")
    temperature: float = Field(0.2, ge=0, description="0 is greedy")
    max_tokens: Positive = 1024
    max_model_len: Positive = Field(2048, description="image tokens + prompt + answer")
    seed: int = Field(0, description="shared by all seeds of the job: they differ from finetune and prototype on")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{class_name}" not in self.prompt:
            raise ValueError("prompt must hold {class_name}, the place where the class goes")
        if self.max_tokens >= self.max_model_len:
            raise ValueError("max_tokens must be smaller than max_model_len, which also holds image and prompt")
        return self


class Encode(Settings):
    """How images become latents (METHOD 2.3)."""

    resolution: Size = Field(512, description="of the latents that are clustered; both sides forced")
    train_resolution: Size = Field(512, description="of the moments that fine-tuning draws from; centre crop")
    seed: int = Field(0, description="of the posterior samples; shared by all seeds of the job")


class Finetune(Settings):
    """How the UNet learns the pairs (METHOD 2.2)."""

    epochs: Positive = 8
    batch_size: Positive = Field(32, description="images per optimiser step over all ranks")
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: Fraction = 0.9999
    random_flip: bool = Field(True, description="false where a mirrored image is another thing, as with digits")
    mixed_precision: Literal["no", "fp16", "bf16"] = "fp16"
    gradient_checkpointing: bool = True
    validation_epochs: Positive = Field(2, description="sample images from the class names every so many epochs")


class Prototype(Settings):
    """How classes become prototypes (METHOD 2.4, 2.5)."""

    contamination: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="share of outliers; 0: no LOF")
    n_neighbors: Positive = 10
    n_init: Positive = 10
    max_df: Annotated[float, Field(gt=0, le=1)] = Field(0.7, description="beta: words in more descriptions say nothing")
    n_words: Positive = Field(30, description="representative words kept per cluster")
    matching: Literal["word", "substring"] = Field("word", description="substring is what the released code does")


class Generate(Settings):
    """How prototypes become images (METHOD 2.6)."""

    strength: Annotated[float, Field(gt=0, le=1)] = 0.7
    guidance_scale: Annotated[float, Field(ge=1)] = Field(10.0, description="1 is without guidance")
    num_inference_steps: Positive = 50
    negative_prompt: str = "cartoon, anime, painting"
    image_size: Positive = Field(256, description="of the synthetic images, resized after decoding")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if int(self.num_inference_steps * self.strength) < 1:
            raise ValueError("strength leaves no denoising step: raise strength or num_inference_steps")
        return self


class Teach(Settings):
    """The network, trained on the real train split, that gives soft labels (METHOD 3.2) and features (METHOD 4)."""

    network: Network = Field("ResNet-18", description="with batch norm; ResNet-18-modified for images of 32 or 64")
    width: Positive = Field(128, description="channels of a ConvNet; the ResNets have their own")
    input_size: Positive = 224
    epochs: Positive = 60
    batch_size: Positive = 128
    learning_rate: float = Field(0.1, gt=0, description="the highest of one cycle: up for a fifth of the steps")
    checks: Positive = Field(10, description="validations in the training")
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16: 1.7 times as fast on a CPU that has it")
    flip: bool = Field(True, description="false where a mirrored image is another thing, as with digits")
    checkpoint: str = Field("", description="a .pth state dict to load instead of training; empty: train")


class Evaluate(Settings):
    """How a distilled set is judged (METHOD 3.1, 3.2)."""

    protocols: tuple[Protocol, ...] = Field(("minimax",), description="minimax: hard labels; rded: a teacher's")
    networks: tuple[Network, ...] = Field(("ConvNet-6",), description="instance norm under minimax, batch under rded")
    width: Positive = Field(128, description="channels of a ConvNet; the ResNets have their own")
    input_size: Positive = 224
    epochs: Positive | None = Field(None, description="none: the protocol's own number for the ipc")
    full_epochs: Positive = Field(300, description="for the full train split")
    checks: Positive = Field(100, description="validations in a training; under rded only those of its last fifth")
    repeats: Positive = 3
    batch_size: Positive = Field(64, description="of minimax")
    learning_rate: float = Field(0.01, gt=0, description="of minimax")
    flip: bool = Field(True, description="false where a mirrored image is another thing, as with digits")
    factor: Positive = Field(
        1, description="of rded, protocol and method: patches a side; 2 for ImageNet-1K and Tiny-ImageNet"
    )
    temperature: float = Field(20.0, gt=0, description="of rded")
    rded_epochs: Positive | None = Field(None, description="of rded; none: `epochs`, and where that is none, 300")
    rded_batch_size: Positive | None = Field(None, description="none: the protocol's own; 100 for Tiny-ImageNet")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _different(self, "protocols", "networks")
        if self.input_size % self.factor:
            raise ValueError(f"input_size must be a multiple of factor, {self.factor}, not {self.input_size}")
        for name, protocol in _OF_PROTOCOL.items():
            if protocol not in self.protocols and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of the {protocol} protocol; add it to protocols or leave {name} out")
        return self


# An ignored setting is an error.
_OF_PROTOCOL: Final[Mapping[str, Protocol]] = {
    name: "minimax" if name in ("batch_size", "learning_rate") else "rded"
    for name in ("batch_size", "learning_rate", "temperature", "rded_epochs", "rded_batch_size")
}


class Compare(Settings):
    """Which sets are made and judged, each in a table of its own, by the same trials."""

    methods: tuple[Method, ...] = ("vlcp", "random", "centroid", "full")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _different(self, "methods")
        return self


class Job(Settings):
    """One experiment: what to distil, how, and how to judge it. `[scale]` is no part of it: see `scale.py`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="of the job, in reports and exports")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0,), description="a distilled set each")
    ipc: tuple[Positive, ...] = Field((10,), description="images per class, one distilled set each")
    base_model: str = Field(
        "benjamin-paine/stable-diffusion-v1-5",
        description="hub id, folder, or demo/stable_diffusion",
    )
    ingest: Ingest = Ingest()
    caption: Caption = Caption()
    encode: Encode = Encode()
    finetune: Finetune = Finetune()
    prototype: Prototype = Prototype()
    generate: Generate = Generate()
    teach: Teach = Teach()
    evaluate: Evaluate = Evaluate()
    compare: Compare = Compare()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _different(self, "seeds", "ipc")
        evaluate, size = self.evaluate, self.generate.image_size
        if evaluate.factor > 1 and "rded" not in (*evaluate.protocols, *self.compare.methods):
            raise ValueError("evaluate.factor is of rded; add it to protocols or methods or leave factor out")
        if "rded" in self.compare.methods and size % evaluate.factor:
            raise ValueError(
                f"generate.image_size must be a multiple of evaluate.factor, {evaluate.factor}, not {size}"
            )
        if self.compare.methods == ("full",) and "minimax" not in evaluate.protocols:
            raise ValueError("compare.methods: full is trained under minimax; add minimax to evaluate.protocols")
        if "rded" in self.evaluate.protocols and self.teach.input_size != self.evaluate.input_size:
            raise ValueError(
                f"teach.input_size must be evaluate.input_size, {self.evaluate.input_size}, not {self.teach.input_size}"
            )
        return self


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, a value is out of range.
    """
    settings = read_toml(path)
    settings.setdefault("name", Path(path).stem)
    for override in overrides:
        _apply(settings, override)
    return build(Job, settings, str(path))


def _apply(settings: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise ConfigError(f"--set {override}: write --set section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string, so that paths need no quotes within quotes
    *sections, last = key.strip().split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {override}: {section!r} is a value, not a section")
    settings[last] = value
