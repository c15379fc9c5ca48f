"""teach: IMAGES -> the teacher, a classifier that gives soft labels and features."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from vlcp_ray.models.networks import NETWORKS, TEACHER_NORM, check_input_size, check_teacher, check_width
from vlcp_ray.settings import ConfigError, Positive, Settings, check_unique
from vlcp_ray.stages import evaluate
from vlcp_ray.stages.stage import TRAINING_PASSES, Load, Memory, Stage
from vlcp_ray.store.io import content_hash

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step

#: The file of the artifact with the teacher's weights.
WEIGHTS: Final = "teacher.safetensors"
#: The checkpoint that stands for the weights that torchvision publishes for ImageNet-1K.
TORCHVISION: Final = "torchvision"
#: The side in pixels of the images for which torchvision publishes weights of a network that takes one size only.
PUBLISHED_SIDE: Final = 224


class Teach(Settings):
    """The teachers: networks trained on real images, for soft labels and features."""

    network: Annotated[
        tuple[evaluate.NetworkName, ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    ] = Field(
        ("ResNet-18",),
        description="the network, ours with batch norm; ResNet-18-modified for images of 32 or 64 pixels. Of several "
        "the first selects images, and each is the teacher of a training",
    )
    width: Positive = Field(128, description="channels of a ConvNet; other networks have their own number")
    input_size: Positive = Field(224, description="side of the images in pixels")
    epochs: Positive = Field(60, description="training epochs")
    batch_size: Positive = Field(128, description="images per training step")
    learning_rate: float = Field(
        0.1, gt=0, description="highest learning rate; it rises over a fifth of the steps, then falls"
    )
    validations: Positive = Field(10, description="number of validations during the training")
    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="bf16: compute in bfloat16, 1.7 times as fast on a CPU that supports it"
    )
    flip: bool = Field(
        True, description="mirror half of the images; false where that changes the class, as with digits"
    )
    checkpoint: str = Field(
        "",
        description="a .pth state dict to load in place of training, or torchvision: its weights for ImageNet-1K; "
        "empty: train",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_unique(self, "network")
        check_input_size(self.network, self.input_size, TEACHER_NORM, "network")
        check_width(self.network, self.width != type(self).model_fields["width"].default, "network")
        for name in self.network:
            check_teacher(name, "network")
        if self.batch_size == 1:
            raise ValueError("batch_size must be 2 or more: batch norm needs several images")
        if self.checkpoint == TORCHVISION:
            _check_published(self.network, self.input_size)
        if len(self.network) > 1 and self.checkpoint not in ("", TORCHVISION):
            raise ValueError(
                f"checkpoint: a file has the weights of one network, and network has {len(self.network)}; name one "
                f"network, or set checkpoint to {TORCHVISION} or leave it out to train the teachers"
            )
        return self

    @property
    def name(self) -> str:
        """The network of a single teacher."""
        (name,) = self.network
        return name

    def of(self, name: str) -> "Teach":
        """Return the settings of one of the teachers."""
        return self.model_copy(update={"network": (name,)})

    def teachers(self) -> "list[Teach]":
        """Return the settings of each teacher."""
        return [self.of(name) for name in self.network]

    def describe(self) -> str:
        """Name the network of a single teacher and its training: `ResNet-18, 60 epochs`."""
        return f"{self.name}, {self._training()}"

    def _training(self) -> str:
        if not self.checkpoint:
            return f"{self.epochs} epochs"
        return "torchvision's weights" if self.checkpoint == TORCHVISION else "weights from a file"


@dataclass(frozen=True)
class Recipe:
    """Constants of the teacher's training, which no setting changes.

    Args:
        momentum, weight_decay: of SGD.
        warm_up: share of the steps in which the learning rate rises.
        crop_scale: the smallest and the largest share of the area that a crop covers, for images that are cropped.
        largest_shifted: images up to this side in pixels are shifted, as is usual for CIFAR, and not cropped.
        shift: the side divided by this is the largest shift: 4 pixels of 32.
        min_batch: a smaller last batch is joined to the one before it, since batch norm cannot learn from one image.
    """

    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.2
    crop_scale: tuple[float, float] = (0.08, 1.0)
    largest_shifted: int = 64
    shift: int = 8
    min_batch: int = 2


RECIPE: Final = Recipe()


def _check_published(names: Sequence[str], size: int) -> None:
    """Refuse networks whose weights torchvision does not publish, or publishes for images of another size.

    Raises:
        ValueError: names the networks that fit.
    """
    fits = [
        name
        for name, network in NETWORKS.items()
        if network.published and (network.multiple == 1 or size == PUBLISHED_SIDE)
    ]
    for name in names:
        if not NETWORKS[name].published:
            raise ValueError(
                f"checkpoint: torchvision publishes no weights of {name}, only of {', '.join(fits)}; choose one of "
                "these, name a .pth file, or leave it out to train a teacher"
            )
        if name not in fits:
            raise ValueError(
                f"checkpoint: torchvision's weights of {name} are for images of {PUBLISHED_SIDE} pixels, not {size}; "
                f"set input_size to {PUBLISHED_SIDE}, leave checkpoint out to train a teacher, or choose one of "
                f"{', '.join(fits)}"
            )


def hashed_settings(settings: Teach) -> dict[str, Any]:
    """Return the settings that determine one teacher: those of its training, or the hash of its checkpoint."""
    name = {"network": settings.name}
    if not settings.checkpoint:
        return settings.model_dump() | name | {"recipe": asdict(RECIPE)}
    kept, checkpoint = settings.model_dump(include={"width", "input_size"}), settings.checkpoint
    is_published = checkpoint == TORCHVISION
    return kept | name | {"checkpoint": NETWORKS[settings.name].published if is_published else content_hash(checkpoint)}


def check_checkpoint(checkpoint: str) -> None:
    """Refuse a folder as a checkpoint, before it is hashed.

    Raises:
        ConfigError: names the fix.
    """
    is_path = checkpoint not in ("", TORCHVISION) and "://" not in checkpoint
    if is_path and Path(checkpoint).expanduser().is_dir():
        raise ConfigError(f"teach.checkpoint: {checkpoint!r} is a folder; name a .pth file in it")


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    settings, images = inputs.job.teach, inputs.images
    training_passes = 0 if settings.checkpoint else TRAINING_PASSES * settings.epochs * images.train
    validation_passes = images.val * (1 if settings.checkpoint else min(settings.validations, settings.epochs))
    each = sum(
        inputs.models.classify(
            step.settings["network"], settings.input_size, settings.width, images.classes, TEACHER_NORM
        )
        for step in steps
    )
    yield Load(evaluate.CLASSIFY, images.train, each * (training_passes + validation_passes), units=1)


def _memory(job: "Job", _: "ModelMemory", __: "Scale") -> Iterator[Memory]:
    """Yield what the training of the largest teacher needs, where one of them is a network of torchvision."""
    settings, classes = job.teach, evaluate.count_classes(job)
    if any(NETWORKS[name].is_of_torchvision for name in settings.network) and not settings.checkpoint:
        from vlcp_ray.cost.classifiers import training_gib

        gib = max(
            training_gib(name, settings.input_size, settings.width, classes, TEACHER_NORM, settings.batch_size)
            for name in settings.network
        )
        fix = "lower teach.batch_size, or give the pool evaluate a larger share of a GPU (num_gpus in the scale file)"
        yield Memory(STAGE.name, "teach.network", STAGE.pools[0], gib, gib, fix)


def _check(job: "Job") -> None:
    checkpoint = job.teach.checkpoint
    if checkpoint == TORCHVISION:
        for name in job.teach.network:
            _check_offline(name)
    if checkpoint and checkpoint != TORCHVISION and "://" not in checkpoint and not Path(checkpoint).is_file():
        raise ConfigError(
            f"teach.checkpoint: there is no file {checkpoint!r}; name a .pth file, or leave it out to train a teacher"
        )


def _check_offline(network: str) -> None:
    """Refuse weights that are not in torch's cache on this machine, where HF_HUB_OFFLINE forbids to fetch them.

    torch has no such variable of its own.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        from vlcp_ray.stages.teach.checkpoint import cached_file

        if not (file := cached_file(network)).exists():
            raise ConfigError(
                f"teach.checkpoint: torchvision's weights {NETWORKS[network].published} are not at {file}, and "
                "HF_HUB_OFFLINE is set; run vlcp-ray fetch with this job where there is internet, and set TORCH_HOME "
                "to what it has written"
            )


STAGE: Final = Stage(
    "teach",
    version=3,
    summary="IMAGES -> the network that gives soft labels and features",
    files=(WEIGHTS,),
    pools=evaluate.STAGE.pools,
    rows="networks",
    loads=_loads,
    memory=_memory,
    check=_check,
)
