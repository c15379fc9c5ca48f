"""teach: IMAGES -> the teacher, a classifier that gives soft labels and features."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from vlcp_ray.models.networks import NETWORKS, TEACHER_NORM, check_input_size
from vlcp_ray.settings import ConfigError, OneOf, Positive, Settings
from vlcp_ray.stages import evaluate
from vlcp_ray.stages.stage import TRAINING_PASSES, Load, Stage
from vlcp_ray.store.io import content_hash

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step

#: The file of the artifact with the teacher's weights.
WEIGHTS: Final = "teacher.safetensors"
#: The checkpoint that stands for the weights that torchvision publishes for ImageNet-1K.
TORCHVISION: Final = "torchvision"


class Teach(Settings):
    """The teacher: a network trained on real images, for soft labels and features."""

    network: Annotated[str, OneOf(NETWORKS)] = Field(
        "ResNet-18", description="the network, with batch norm; ResNet-18-modified for images of 32 or 64 pixels"
    )
    width: Positive = Field(128, description="channels of a ConvNet; a ResNet has its own number")
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
        check_input_size([self.network], self.input_size, TEACHER_NORM, "network")
        if self.batch_size == 1:
            raise ValueError("batch_size must be 2 or more: batch norm needs several images")
        if self.checkpoint == TORCHVISION and not NETWORKS[self.network].published:
            known = ", ".join(name for name, network in NETWORKS.items() if network.published)
            raise ValueError(
                f"checkpoint: torchvision publishes no weights of {self.network}, only of {known}; choose one of "
                "these, name a .pth file, or leave it out to train a teacher"
            )
        return self

    def describe(self) -> str:
        """Name the network and its training: `ResNet-18, 60 epochs`."""
        return f"{self.network}, {self._training()}"

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


def hashed_settings(job: "Job") -> dict[str, Any]:
    """Return the settings that determine the teacher: those of its training, or the hash of its checkpoint."""
    if not job.teach.checkpoint:
        return job.teach.model_dump() | {"recipe": asdict(RECIPE)}
    network, checkpoint = job.teach.model_dump(include={"network", "width", "input_size"}), job.teach.checkpoint
    is_published = checkpoint == TORCHVISION
    return network | {"checkpoint": NETWORKS[job.teach.network].published if is_published else content_hash(checkpoint)}


def check_checkpoint(checkpoint: str) -> None:
    """Refuse a folder as a checkpoint, before it is hashed.

    Raises:
        ConfigError: names the fix.
    """
    is_path = checkpoint not in ("", TORCHVISION) and "://" not in checkpoint
    if is_path and Path(checkpoint).expanduser().is_dir():
        raise ConfigError(f"teach.checkpoint: {checkpoint!r} is a folder; name a .pth file in it")


def _loads(inputs: "CostInputs", _: Sequence["Step"]) -> Iterator[Load]:
    settings, images = inputs.job.teach, inputs.images
    each = inputs.models.classify(settings.network, settings.input_size, settings.width, images.classes, TEACHER_NORM)
    training_passes = 0 if settings.checkpoint else TRAINING_PASSES * settings.epochs * images.train
    validation_passes = images.val * (1 if settings.checkpoint else min(settings.validations, settings.epochs))
    yield Load(evaluate.CLASSIFY, images.train, each * (training_passes + validation_passes), units=1)


def _check(job: "Job") -> None:
    checkpoint = job.teach.checkpoint
    if checkpoint == TORCHVISION:
        _check_offline(job.teach.network)
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
    check=_check,
)
