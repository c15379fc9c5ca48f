"""minimax: images of a class-conditional DiT that was fine-tuned to be representative and diverse."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from vlcp_ray.methods.method import Method
from vlcp_ray.models import dit_classes, pretrained
from vlcp_ray.settings import Fraction, Positive, Settings
from vlcp_ray.stages import finetune, generate, select
from vlcp_ray.stages.stage import Load, Memory

if TYPE_CHECKING:
    import pyarrow as pa

    from vlcp_ray.config import Job
    from vlcp_ray.cost.flops import ModelFlops
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Artifact, Step

#: Channels of the predicted noise that guidance changes: three of the latent's four, as in the released code.
GUIDED_CHANNELS: Final = 3


class Minimax(Settings):
    """minimax only: fine-tuning of a DiT with two more terms in its loss, and sampling from it."""

    model: str = Field(
        "facebook/DiT-XL-2-256",
        description="the DiT: hub id (also owner/name@revision), folder of diffusers, or demo/dit; its "
        "model_index.json names its classes (id2label), among which those of the image set must be",
    )
    epochs: Positive = Field(8, description="passes over the training images of a group of classes")
    batch_size: Positive = Field(8, description="images per optimiser step over all ranks")
    learning_rate: float = Field(1e-3, gt=0, description="learning rate of AdamW, constant; no weight decay")
    ema_decay: Fraction = Field(0.9999, description="decay of the moving average of the weights, which is the result")
    random_flip: bool = Field(
        True, description="mirror images at random; false where that changes the class, as with digits"
    )
    class_dropout: Fraction = Field(0.1, description="share of images that are trained on without their class")
    representativeness: float = Field(
        0.002, ge=0, description="weight of 1 - the lowest similarity of a class's predictions to its memory of images"
    )
    diversity: float = Field(
        0.008, ge=0, description="weight of the highest similarity of a class's predictions to earlier ones"
    )
    memory_size: Positive = Field(64, description="newest images, and newest predictions, of a class in its memories")
    classes_per_model: Positive = Field(
        10,
        description="classes that one DiT is fine-tuned on; larger sets are divided into such groups, in order",
    )
    num_inference_steps: Positive = Field(50, le=1000, description="denoising steps (DDPM) of an image")
    guidance_scale: float = Field(4.0, ge=1, description="classifier-free guidance scale; 1: without guidance")


def image_flops(settings: Minimax, flops: "ModelFlops", side: int) -> float:
    """Count the operations of one image: denoising, twice as much with guidance, and decoding."""
    calls = settings.num_inference_steps * (1 + (settings.guidance_scale > 1))
    return calls * flops.denoise_dit(side) + flops.decode_dit(side)


_SAMPLING: Final = ("num_inference_steps", "guidance_scale")


class Sample:
    """Row-wise: generate images of classes. No row depends on the other rows."""

    def __init__(self, job: "Job", models: "Mapping[str, Artifact]", batch_size: int) -> None:
        """Load the DiT.

        Args:
            job: settings of the method, and the size of the images.
            models: the artifacts with the trained weights, by fingerprint.
            batch_size: images at once.
        """
        from vlcp_ray.models import dit, stable_diffusion

        settings = job.compare.minimax
        self.image_size, self.models, self.loaded = job.generate.image_size, models, ("", -1)
        options = {"guided_channels": GUIDED_CHANNELS, "guidance_scale": settings.guidance_scale}
        device = stable_diffusion.pick_device()
        self.sampler = dit.Sampler(settings.model, device, batch_size, steps=settings.num_inference_steps, **options)
        self.dit_names, self.model = pretrained.dit_names(settings.model), settings.model

    def __call__(self, table: "pa.Table") -> "pa.Table":
        """Generate one image per row; rejects those that are not finite, also in float32 (`not_finite`).

        Args:
            table: image_id, label, class_name, number of the image in its class, seed of the set, model (fingerprint)
                and group of the class. Other columns stay.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        parts = []
        keys = sorted(set(zip(table["model"].to_pylist(), table["group"].to_pylist(), strict=True)))
        for model, group in keys:
            self._load(model, group)
            own = pc.and_(pc.equal(table["model"], model), pc.equal(table["group"], group))
            parts.append(self._generate(table.filter(own)))
        return pa.concat_tables(parts)

    def _load(self, model: str, group: int) -> None:
        """Load the weights that were trained on a group of classes, unless they are there."""
        from safetensors.torch import load

        from vlcp_ray.models import dit

        if self.loaded != (model, group):
            name = f"{dit_classes.folder(group)}/{finetune.MODEL}/{finetune.TRAINED}"
            content = self.models[model].read_bytes(name)
            if content is None:
                raise ValueError(f"{self.models[model].path}/{name} is missing; {self.models[model].repair}")
            dit.set_weights(self.sampler.network, load(content))
            self.loaded = (model, group)

    def _generate(self, table: "pa.Table") -> "pa.Table":
        from vlcp_ray.methods.synthetic_rows import from_pictures
        from vlcp_ray.seeds import seed_for

        names = table["class_name"].to_pylist()
        keys = zip(table["seed"].to_pylist(), names, table["number"].to_pylist(), strict=True)
        seeds = [seed_for(seed, "minimax sample", name, number) for seed, name, number in keys]
        pictures = self.sampler(dit_classes.match(names, self.dit_names, self.model), seeds)
        return from_pictures(table, table["image_id"].to_pylist(), pictures, self.image_size, [""] * len(table), seeds)


def _tuning(job: "Job") -> dict[str, Any]:
    """Return the settings that determine the trained weights."""
    settings = job.compare.minimax
    values = settings.model_dump(exclude=set(_SAMPLING))
    return values | {"model": pretrained.content_hash(settings.model)}


def _settings(job: "Job", base_model: str) -> dict[str, Any]:
    sampling = job.compare.minimax.model_dump(include=set(_SAMPLING))
    return sampling | {"guided_channels": GUIDED_CHANNELS, "image_size": job.generate.image_size}


def _groups(job: "Job", labels: Sequence[int]) -> list[list[int]]:
    return dit_classes.divide(labels, job.compare.minimax.classes_per_model)


def _loads(inputs: "CostInputs", steps: "Sequence[Step]") -> Iterator[Load]:
    """Count the images of the largest set of each seed: the smaller sets are its first images."""
    settings = inputs.job.compare.minimax
    largest = {seed: max(step.key["ipc"] for step in steps if step.key["seed"] == seed) for seed in _seeds(steps)}
    made = sum(largest.values()) * inputs.images.classes
    each = image_flops(settings, inputs.models, pretrained.dit_side(settings.model))
    yield Load(select.SAMPLE, generate.count_images(inputs, steps), made * each, units=made)


def _seeds(steps: "Sequence[Step]") -> list[int]:
    return sorted({step.key["seed"] for step in steps})


def _memory(job: "Job", models: "ModelMemory", scale: "Scale") -> Iterator[Memory]:
    settings = job.compare.minimax
    side, guided = pretrained.dit_side(settings.model), settings.guidance_scale > 1
    gib, least = (models.generate_by_dit(images, side, guided) for images in (scale.generate.batch_size, 1))
    fix = "give the pool whole GPUs, or use larger ones"
    yield Memory("sample the DiT", "compare.minimax.model", generate.DENOISE.pool, gib, least, fix)


METHOD: Final = Method(
    "minimax",
    "generated by a class-conditional DiT, fine-tuned to be representative and diverse",
    "Efficient Dataset Distillation via Minimax Diffusion (Gu et al. 2024)",
    "labels",
    ("images", "model"),
    code="vlcp_ray.methods.minimax:Sample",
    groups=_groups,
    settings=_settings,
    loads=_loads,
    works=(select.SAMPLE,),
    memory=_memory,
    options=("minimax",),
    tuning=_tuning,
)
