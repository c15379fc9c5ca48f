"""finetune: PAIRS -> Stable Diffusion with its UNet fine-tuned on them, as a diffusers folder."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from vlcp_ray.models import pretrained
from vlcp_ray.settings import ConfigError, Fraction, Positive, Settings
from vlcp_ray.stages.generate import DENOISE
from vlcp_ray.stages.stage import TRAINING_PASSES, Load, Stage, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.flops import ModelFlops
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step

#: The artifact's folder with the fine-tuned model.
MODEL: Final = "model"
#: Validation images are generated for the first 10 classes, in 20 denoising steps, at guidance scale 7.5.
VALIDATION_CLASSES, VALIDATION_STEPS, VALIDATION_GUIDANCE = 10, 20, 7.5
_FULL: Final = 4  # bytes of a number in full precision
_COPIES: Final = 5  # numbers per parameter: weight, gradient, two moments of Adam, moving average


class Finetune(Settings):
    """Fine-tuning of the UNet on PAIRS (METHOD 2.2)."""

    epochs: Positive = 8
    batch_size: Positive = Field(32, description="images per optimiser step over all ranks")
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: Fraction = 0.9999
    random_flip: bool = Field(True, description="false where a mirrored image has another meaning, as with digits")
    mixed_precision: Literal["no", "fp16", "bf16"] = "fp16"
    gradient_checkpointing: bool = True
    validation_epochs: Positive = Field(2, description="epochs from one set of validation images to the next")


TRAIN: Final = Work(
    "finetune",
    "finetune",
    "vlcp_ray.stages.finetune.bench:finetune",
    on_cpu=(0.35, 10.0),
    on_gpu=(0.16, 60.0),  # assumed to be like the denoising of `generate`
    overhead="train",
    model=lambda job: pretrained.count_parameters(job.base_model, "unet"),
)


def training_flops(job: "Job", flops: "ModelFlops") -> float:
    """Count the operations of one training image: forward and backward pass of the UNet, and its caption's embedding.

    With gradient checkpointing the forward pass is computed twice.
    """
    passes = TRAINING_PASSES + job.finetune.gradient_checkpointing
    side = pretrained.expected_latent_shape(job.base_model, job.encode.train_resolution)[1]
    return passes * flops.denoise(side) + flops.embed_text()


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    settings, seeds = inputs.job.finetune, len(steps)
    trained = settings.epochs * inputs.images.train * seeds
    flops = trained * training_flops(inputs.job, inputs.models)
    yield Load(TRAIN, trained, flops, units=settings.batch_size, starts=seeds)
    side = inputs.latent_side(inputs.job.encode.train_resolution)
    validations = settings.epochs // settings.validation_epochs * seeds
    generated = min(VALIDATION_CLASSES, inputs.images.classes) * validations
    flops = generated * (2 * VALIDATION_STEPS * inputs.models.denoise(side) + inputs.models.decode(side))
    yield Load(DENOISE, 0, flops, units=1, starts=0, wide=False, pool=TRAIN.pool)


def _disk(inputs: "CostInputs", steps: Sequence["Step"]) -> float:
    parameters = pretrained.count_pipeline_parameters(inputs.job.base_model)
    return float("nan") if parameters is None else len(steps) * parameters * _FULL / 2**30


def _memory(job: "Job") -> Mapping[str, float | None]:
    parameters = pretrained.count_parameters(job.base_model, "unet")
    return {"fine-tune": None if parameters is None else parameters * _COPIES * _FULL / 2**30}


def _check_scale(job: "Job", scale: "Scale") -> None:
    """Refuse fp16 without a GPU before the images are captioned, not hours later when fine-tuning starts."""
    if job.finetune.mixed_precision == "fp16" and not scale.finetune.num_gpus:
        raise ConfigError(
            "finetune.mixed_precision: fp16 needs a GPU, but the pool finetune has none; set it to no or bf16, or give "
            "the pool a GPU in the scale file (--scale FILE)"
        )


STAGE: Final = Stage(
    "finetune",
    version=1,
    summary="PAIRS -> a Stable Diffusion fine-tuned on them",
    pools=("finetune",),
    counted="images",
    gang_scheduled=True,
    output="models",
    works=(TRAIN,),
    loads=_loads,
    disk=_disk,
    memory=_memory,
    check_scale=_check_scale,
)
