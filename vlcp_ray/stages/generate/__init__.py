"""generate: PROTOTYPES + model -> SYNTHETIC, one image per prototype."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import Field, model_validator

from vlcp_ray.models import families, pretrained
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.settings import Positive, Settings
from vlcp_ray.stages.stage import Load, Memory, Stage, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.flops import ModelFlops
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step

_PNG: Final = 0.7  # size of a small photograph as PNG, as a share of its raw bytes


class Generate(Settings):
    """Generation of images from prototypes."""

    strength: Annotated[float, Field(gt=0, le=1)] = Field(
        0.7, description="share of the denoising steps that are run on a noisy prototype; 1: from pure noise"
    )
    guidance_scale: Annotated[float, Field(ge=1)] = Field(
        10.0, description="classifier-free guidance scale; 1: without guidance"
    )
    num_inference_steps: Positive = Field(50, description="denoising steps at strength 1")
    negative_prompt: str = Field("cartoon, anime, painting", description="what guidance leads away from")
    image_size: Positive = Field(256, description="side of the synthetic images in pixels, resized after decoding")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if int(self.num_inference_steps * self.strength) < 1:
            raise ValueError("strength leaves no denoising step: raise strength or num_inference_steps")
        return self


def is_work_of_methods(work: Work, job: "Job") -> bool:
    """Return whether the sets of a compared method are made by a kind of work."""
    from vlcp_ray.methods import METHODS  # imported here, because the methods import this file

    methods = [METHODS[name] for name in job.compare.methods]
    return any(work in method.works or (work is DENOISE and method.form == "generation") for method in methods)


DENOISE: Final[Work] = Work(
    "generate",
    "generate",
    "vlcp_ray.stages.generate.bench:generate",
    on_cpu=(0.5, 6.0),
    # 31.2 steps/s of Stable Diffusion 1.5 with guidance (2 x 0.80 TFLOP each) in diffusers with SDPA on an A100 of 312
    # TFLOPS: github.com/strint/stable-diffusion-benchmarks.
    on_gpu=(0.16, 40.0),
    is_published=True,
    retains_memory=True,
    model=lambda job: pretrained.identify(job.base_model, "unet"),
    wanted=lambda job: is_work_of_methods(DENOISE, job),
)


def group_by_model(steps: Sequence["Step"]) -> list[list["Step"]]:
    """Group the steps that have the same method, model and settings, so that each group loads the model once."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        model = step.inputs["model"].fingerprint if "model" in step.inputs else ""
        groups.setdefault(json.dumps([step.key["method"], model, step.settings], sort_keys=True), []).append(step)
    return list(groups.values())


def image_flops(
    settings: Generate, flops: "ModelFlops", latent_side: int, slices: int = 1, *, repeated: int = 1
) -> float:
    """Count the operations of one image: denoising (twice as much with guidance), embedding of its text, decoding.

    Args:
        settings: strength, guidance and steps.
        flops: operations of the model.
        latent_side: height and width of the latent.
        slices: slices of 77 ids in the text prototype or class name.
        repeated: steps that the sampler evaluates twice: PNDM its first one, DDIM none.
    """
    calls = int(settings.num_inference_steps * settings.strength) + repeated
    calls *= 1 + (settings.guidance_scale > 1)
    return calls * flops.denoise(latent_side, slices) + flops.decode(latent_side) + flops.embed_text(slices)


def count_images(inputs: "CostInputs", steps: Sequence["Step"]) -> int:
    """Count the images of the distilled sets of these steps."""
    return sum(int(step.key["ipc"]) for step in steps) * inputs.images.classes


def disk(inputs: "CostInputs", steps: Sequence["Step"]) -> float:
    """Estimate the GiB of the distilled sets of these steps, with images of `generate.image_size`."""
    return count_images(inputs, steps) * 3 * inputs.job.generate.image_size**2 * _PNG / 2**30


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    flops, largest, side = 0.0, 0.0, inputs.latent_side(inputs.job.encode.resolution)
    for step in steps:
        settings = Generate(**{name: step.settings[name] for name in Generate.model_fields})
        slices = inputs.text_slices(step.settings["text"])
        each = image_flops(settings, inputs.models, side, slices)
        flops += count_images(inputs, [step]) * each
        largest = max(largest, inputs.scale.generate.batch_size * each)
    count, models = count_images(inputs, steps), len(group_by_model(steps))
    yield Load(DENOISE, count, flops, units=count, largest=models * min(largest, flops / models), starts=models)


def _memory(job: "Job", models: "ModelMemory", scale: "Scale") -> Iterator[Memory]:
    side = pretrained.expected_latent_shape(job.base_model, job.encode.resolution)[1]
    guided = job.generate.guidance_scale > 1
    gib, least = (models.generate(images, side, guided) for images in (scale.generate.batch_size, 1))
    fix = "give the pool whole GPUs, or use larger ones or a smaller base_model"
    yield Memory("generate", "base_model", "generate", gib, least, fix)


STAGE: Final = Stage(
    "generate",
    version=2,
    summary="PROTOTYPES + model -> SYNTHETIC",
    tables={"synthetic": SYNTHETIC},
    files=("rejected",),
    pools=("generate",),
    rows="prototypes",
    row_wise=True,
    output="distilled",
    works=(DENOISE,),
    loads=_loads,
    disk=disk,
    memory=_memory,
    models=lambda job: iter([pretrained.Use("base_model", job.base_model, families.STABLE_DIFFUSION)]),
)
