"""finetune: PAIRS -> Stable Diffusion with its UNet fine-tuned on them; IMAGES -> the trained weights of a DiT."""

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from vlcp_ray.models import families, pretrained
from vlcp_ray.models.dit_classes import CLASSES
from vlcp_ray.settings import ConfigError, Fraction, Positive, Settings
from vlcp_ray.stages import pair
from vlcp_ray.stages.generate import DENOISE
from vlcp_ray.stages.stage import TRAINING_PASSES, Load, Memory, Stage, Traffic, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.flops import ModelFlops
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.scale import FinetunePool, Scale
    from vlcp_ray.store.artifact import Step

#: The artifact's folder with the fine-tuned model.
MODEL: Final = "model"
#: The file with the trained weights of a DiT, in the folder MODEL of each group of classes.
TRAINED: Final = "trained.safetensors"
#: Settings that are hashed only where they are set: models from before there were any keep their fingerprints.
_LATER: Final = ("snr_gamma", "lora_rank")
#: LoRA: the layers beside which matrices are trained, all projections of attention as in diffusers' recipes; the scale
#: of their product, peft's lora_alpha divided by the rank; and their first values, as peft names them.
LORA: Final[Mapping[str, Any]] = {
    "layers": ["to_q", "to_k", "to_v", "to_out.0"],
    "scale": 1,
    "init_lora_weights": "gaussian",
}
_RANK: Final = 16  # of LoRA, where the memory does not suffice for all weights
_MIN_IMAGES: Final = 4  # of a step, on each rank
_ADDING_UP: Final = 0.1  # of a step, for each further rank: an assumption
_FULL: Final = 4  # bytes of a number in full precision
_CHECKPOINT_BYTES: Final = 4 * _FULL  # of a parameter: weight, moving average, two moments
#: Bytes that a step reads and writes for a parameter: AdamW 28, norm and clipping 12, moving average 12, gradient set
#: to zero 4, weight read and written in half precision 6.
_STEP_BYTES: Final = 62
_BACKWARD: Final = 0.6  # part of a training step's operations in which gradients become known, and are sent
#: Cost of a training step of a DiT or of LoRA in forward passes: its own, and the gradients of activations.
_ACTIVATION_PASSES: Final = 2
_DISK: Final = 1e9  # bytes per second of the local disk to which a checkpoint is written: an assumption


class Finetune(Settings):
    """Fine-tuning of the UNet on PAIRS."""

    epochs: Positive = Field(8, description="passes over the train split")
    batch_size: Positive = Field(32, description="images per optimiser step over all ranks")
    learning_rate: float = Field(1e-5, gt=0, description="learning rate of AdamW, constant")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients of a larger norm are scaled down to it")
    ema_decay: Fraction = Field(0.9999, description="decay of the moving average of the weights, which is the result")
    random_flip: bool = Field(
        True, description="mirror images at random; false where that changes the class, as with digits"
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("fp16", description="fp16 needs a GPU; no: float32")
    snr_gamma: float = Field(
        0.0,
        ge=0,
        description="min-SNR weighting of the loss (Hang et al. 2023, who take 5): no timestep counts as if its "
        "signal-to-noise ratio were larger; 0: all count alike",
    )
    lora_rank: int = Field(
        0,
        ge=0,
        description="rank of the matrices that are trained beside the UNet's attention layers (LoRA, Hu et al. 2022), "
        "for a GPU of 12 or 16 GB; the result is the UNet with them added; 0: all weights are trained",
    )
    validation_epochs: Positive = Field(2, description="epochs from one set of validation images to the next")
    validation_classes: Positive = Field(
        10, description="number of classes, from the first, with one validation image each"
    )
    validation_steps: Positive = Field(20, description="denoising steps of a validation image")
    validation_guidance_scale: float = Field(7.5, ge=1, description="of a validation image; 1: without guidance")


def hashed_settings(job: "Job", base_model: str) -> dict[str, Any]:
    """Return the settings that determine the fine-tuned model.

    Args:
        job: with the settings of the stage.
        base_model: content hash of the base model.
    """
    settings = job.finetune
    later = {name for name in _LATER if getattr(settings, name) == Finetune.model_fields[name].default}
    recipe = {"lora": dict(LORA)} if settings.lora_rank else {}
    return settings.model_dump(exclude=later) | recipe | {"base_model": base_model}


TRAIN: Final = Work(
    "finetune",
    "finetune",
    "vlcp_ray.stages.finetune.bench:finetune",
    on_cpu=(0.35, 10.0),
    # The denoising of `generate`. On an H200 beside 16 cores 192 TFLOP/s of 989 with batches of 20, recomputed; with
    # smaller ones the time of launching the kernels of a batch: tests/benchmarks/README.md.
    on_gpu=(0.16, 60.0),
    launch=0.176,
    overhead="train",
    model=lambda job: pretrained.identify(job.base_model, "unet"),
)


def _tunes_dit(job: "Job") -> bool:
    from vlcp_ray.methods import METHODS  # imported here, because the methods import this file

    return any(METHODS[name].tuning for name in job.compare.methods)


def _tunes_unet(job: "Job") -> bool:
    from vlcp_ray.methods import METHODS

    return any("model" in METHODS[name].inputs and not METHODS[name].tuning for name in job.compare.methods)


TRAIN_DIT: Final = Work(
    "finetune-dit",
    "finetune",
    "vlcp_ray.stages.finetune.bench:finetune_dit",
    on_cpu=(0.2, 10.0),  # assumed
    on_gpu=(0.08, 60.0),  # assumed: half of that of the UNet, which computes in half precision
    overhead="train",
    model=lambda job: pretrained.identify(job.compare.minimax.model, "transformer"),
    wanted=_tunes_dit,
)


def is_unet(step: "Step") -> bool:
    """Return whether a step trains the UNet of Stable Diffusion, or the DiT of a compared method."""
    return "pairs" in step.inputs


def divide_pool(pool: "FinetunePool", batch_size: int, seeds: int) -> "tuple[FinetunePool, int]":
    """Divide the ranks of a pool among trainings of several seeds that run at the same time.

    A rank has at least four images of a step. Adding up the gradients of all ranks takes a tenth of a step for each
    further rank (an assumption), so that several trainings on a part of the ranks each are often done sooner than one
    after the other on all of them.

    Returns the pool of each training, and how many run at a time.
    """
    most = max(1, batch_size // _MIN_IMAGES)

    def ranks(at_once: int) -> int:
        return min(most, pool.num_workers // at_once)

    def seconds(at_once: int) -> float:
        return math.ceil(seeds / at_once) * (1 + _ADDING_UP * (ranks(at_once) - 1)) / ranks(at_once)

    at_once = min(range(1, min(seeds, pool.num_workers) + 1), key=lambda count: (seconds(count), -count))
    required = max(1, min(ranks(at_once), pool.required_workers // at_once))
    return pool.model_copy(update={"num_workers": ranks(at_once), "min_workers": required}), at_once


def training_flops(job: "Job", flops: "ModelFlops", gradient_checkpointing: bool) -> float:
    """Count the operations of one training image: forward and backward pass of the UNet, and its caption's embedding.

    With gradient checkpointing the forward pass is computed twice. With LoRA the gradients of the frozen weights are
    not computed, and what its own matrices compute is not counted.
    """
    passes = (_ACTIVATION_PASSES if job.finetune.lora_rank else TRAINING_PASSES) + gradient_checkpointing
    side = pretrained.expected_latent_shape(job.base_model, job.encode.train_resolution)[1]
    return passes * flops.denoise(side) + flops.embed_text()


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    for loads, chosen in ((_unet_loads, is_unet), (_dit_loads, lambda step: not is_unet(step))):
        if own := [step for step in steps if chosen(step)]:
            yield from loads(inputs, own)


def dit_training_flops(flops: "ModelFlops", side: int, gradient_checkpointing: bool) -> float:
    """Count the operations of one training image of a DiT: forward pass, and a backward pass of activations only.

    The weights that are trained are so few that their gradients are not counted. With gradient checkpointing the
    forward pass is computed twice.
    """
    return (_ACTIVATION_PASSES + gradient_checkpointing) * flops.denoise_dit(side)


def _dit_loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    settings, seeds, scale = inputs.job.compare.minimax, len(steps), inputs.scale.finetune
    side, images = pretrained.dit_side(settings.model), inputs.images
    groups = math.ceil(images.classes / settings.classes_per_model)
    views = 1 + settings.random_flip
    encoding = images.train * views * inputs.models.encode_for_dit(side)
    yield Load(pair.ENCODE, 0, encoding, units=images.classes, starts=groups)
    trained = settings.epochs * images.train * seeds
    pool, at_once = divide_pool(scale, settings.batch_size, seeds)
    rounds, ranks = math.ceil(seeds / at_once), pool.num_workers
    rows = math.ceil(settings.batch_size / ranks)  # of a step, on the slowest rank
    steps_taken = rounds * math.ceil(settings.epochs * images.train / settings.batch_size)
    size = inputs.models.dit_trained()
    units = seeds * settings.batch_size / (rounds * rows)
    yield Load(
        TRAIN_DIT,
        trained,
        trained * dit_training_flops(inputs.models, side, scale.gradient_checkpointing),
        units=units,
        starts=rounds * groups,
        holds_pool=True,
        traffic=Traffic(
            memory=steps_taken * _STEP_BYTES * size,
            images=rows,
            link=steps_taken * 2 * (ranks - 1) / ranks * _FULL * size,
            hidden=_BACKWARD * min(1.0, pool.batch_size / rows),
        ),
        batches=min(scale.num_workers, units) * steps_taken * math.ceil(rows / pool.batch_size),
    )


def _unet_loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    settings, seeds, scale = inputs.job.finetune, len(steps), inputs.scale.finetune
    trained = settings.epochs * inputs.images.train * seeds
    flops = trained * training_flops(inputs.job, inputs.models, scale.gradient_checkpointing)
    pool, at_once = divide_pool(scale, settings.batch_size, seeds)
    rounds, ranks = math.ceil(seeds / at_once), pool.num_workers
    rows = math.ceil(settings.batch_size / ranks)  # of a step, on the slowest rank
    steps_taken = rounds * settings.epochs * math.ceil(inputs.images.train / settings.batch_size)
    size = _trained(inputs)
    units = seeds * settings.batch_size / (rounds * rows)
    yield Load(
        TRAIN,
        trained,
        flops,
        units=units,
        starts=rounds,
        holds_pool=True,
        traffic=Traffic(
            memory=steps_taken * _STEP_BYTES * size,
            images=rows,
            link=steps_taken * 2 * (ranks - 1) / ranks * _FULL * size,  # a ring adds up the gradients
            hidden=_BACKWARD * min(1.0, pool.batch_size / rows),  # of the last forward and backward pass
        ),
        batches=min(scale.num_workers, units) * steps_taken * math.ceil(rows / pool.batch_size),
        paused=_CHECKPOINT_BYTES * size / _DISK / (60 * max(1.0, scale.checkpoint_minutes)),
    )
    side = inputs.latent_side(inputs.job.encode.train_resolution)
    validations = settings.epochs // settings.validation_epochs * seeds
    generated = min(settings.validation_classes, inputs.images.classes) * validations
    flops = generated * (2 * settings.validation_steps * inputs.models.denoise(side) + inputs.models.decode(side))
    yield Load(DENOISE, 0, flops, units=at_once, starts=0, holds_pool=True, pool=TRAIN.pool)


def _trained(inputs: "CostInputs") -> float:
    """Count the weights that are trained: all of the UNet, or LoRA's."""
    if rank := inputs.job.finetune.lora_rank:
        return rank * inputs.models.lora_width()
    return pretrained.count_parameters(inputs.job.base_model, "unet") or math.nan


def _disk(inputs: "CostInputs", steps: Sequence["Step"]) -> float:
    """The models, and the checkpoints of the seeds that are trained at the same time: two each while one is written."""
    unets = [step for step in steps if is_unet(step)]
    return _unet_disk(inputs, unets) + _dit_disk(inputs, len(steps) - len(unets))


def _dit_disk(inputs: "CostInputs", seeds: int) -> float:
    """Estimate the GiB of the trained weights of every group of classes, with two checkpoints of each seed."""
    if not seeds:
        return 0.0
    settings = inputs.job.compare.minimax
    groups = math.ceil(inputs.images.classes / settings.classes_per_model)
    return seeds * inputs.models.dit_trained() * (groups * _FULL + 2 * _CHECKPOINT_BYTES) / 2**30


def _unet_disk(inputs: "CostInputs", steps: Sequence["Step"]) -> float:
    if not steps:
        return 0.0
    parameters = pretrained.count_pipeline_parameters(inputs.job.base_model) or math.nan
    unet = _trained(inputs)
    _, at_once = divide_pool(inputs.scale.finetune, inputs.job.finetune.batch_size, len(steps))
    return (len(steps) * parameters * _FULL + 2 * at_once * _CHECKPOINT_BYTES * unet) / 2**30


def _memory(job: "Job", models: "ModelMemory", scale: "Scale") -> Iterator[Memory]:
    if _tunes_unet(job):
        yield _unet_memory(job, models, scale.finetune)
    if _tunes_dit(job):
        yield _dit_memory(job, models, scale.finetune)


def _unet_memory(job: "Job", models: "ModelMemory", pool: "FinetunePool") -> Memory:
    settings = job.finetune
    side = pretrained.expected_latent_shape(job.base_model, job.encode.train_resolution)[1]
    precision, guided = settings.mixed_precision, settings.validation_guidance_scale > 1

    def step(pool: "FinetunePool", images: int, rank: int) -> float:
        return models.train(pool, images, side, precision, rank)

    def most(pool: "FinetunePool", images: int = 1, rank: int = settings.lora_rank) -> float:
        if settings.validation_epochs > settings.epochs:  # no validation images
            return step(pool, images, rank)
        return max(step(pool, images, rank), models.validate(pool, side, guided, precision, rank))

    smallest = pool.model_copy(update={"gradient_checkpointing": True, "average_on": "cpu", "optimizer": "adamw8bit"})
    memory = 'gradient_checkpointing = true, average_on = "cpu" and optimizer = "adamw8bit"'
    helps = []
    if most(smallest) < most(pool):
        helps.append(f"in the section [finetune] of the scale file set {memory} ({most(smallest):.1f} GiB)")
    if not settings.lora_rank:
        helps.append(f"set finetune.lora_rank = {_RANK} ({most(pool, rank=_RANK):.1f} GiB)")
    if (alone := step(pool, 1, settings.lora_rank)) < most(pool):
        none = f"finetune.validation_epochs = {settings.epochs + 1}"
        helps.append(f"set {none} for no validation images ({alone:.1f} GiB)")
    fix = ", ".join([*helps, "or use larger GPUs"])
    return Memory("fine-tune", "base_model", STAGE.name, most(pool, pool.batch_size), most(pool), fix)


def _dit_memory(job: "Job", models: "ModelMemory", pool: "FinetunePool") -> Memory:
    side, recomputes = pretrained.dit_side(job.compare.minimax.model), pool.gradient_checkpointing
    most = min(pool.batch_size, job.compare.minimax.batch_size)
    gib, least = (models.train_dit(recomputes, images, side) for images in (most, 1))
    fix = (
        "in the section [finetune] of the scale file set gradient_checkpointing = true "
        f"({models.train_dit(True, 1, side):.1f} GiB), or use larger GPUs"
    )
    return Memory("fine-tune the DiT", "compare.minimax.model", STAGE.name, gib, least, fix)


def _models(job: "Job") -> Iterator[pretrained.Use]:
    if _tunes_unet(job):
        yield pretrained.Use("base_model", job.base_model, families.STABLE_DIFFUSION)
    if _tunes_dit(job):
        yield pretrained.Use("compare.minimax.model", job.compare.minimax.model, families.DIT)


def _check_scale(job: "Job", scale: "Scale") -> None:
    """Refuse fp16 without a GPU before the images are captioned, not hours later when fine-tuning starts."""
    if _tunes_unet(job) and job.finetune.lora_rank and find_spec("peft") is None:
        raise ConfigError("finetune.lora_rank needs peft, which is not installed; pip install peft")
    if _tunes_unet(job) and job.finetune.mixed_precision == "fp16" and not scale.finetune.num_gpus:
        raise ConfigError(
            "finetune.mixed_precision: fp16 needs a GPU, but the pool finetune has none; set it to no or bf16, or give "
            "the pool a GPU in the scale file (--scale FILE)"
        )


STAGE: Final = Stage(
    "finetune",
    version=3,
    summary="PAIRS -> a Stable Diffusion fine-tuned on them; IMAGES -> the trained weights of a DiT",
    files=(MODEL, "checkpoints", "progress", "memory", "validation", CLASSES),
    pools=("finetune",),
    counted="images",
    gang_scheduled=True,
    output="models",
    works=(TRAIN, TRAIN_DIT),
    loads=_loads,
    disk=_disk,
    memory=_memory,
    models=_models,
    check_scale=_check_scale,
)
