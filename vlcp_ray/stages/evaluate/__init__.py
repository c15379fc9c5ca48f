"""evaluate: SYNTHETIC + IMAGES(val) -> SCORES; every trial trains a classifier from scratch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import pyarrow as pa
from pydantic import BeforeValidator, Field, model_validator

from vlcp_ray.models.networks import NETWORKS, TEACHER_NORM, check_input_size
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.schemas import column
from vlcp_ray.settings import OneOf, Positive, Settings, check_unique
from vlcp_ray.stages.stage import TRAINING_PASSES, Load, Stage, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step


Precision = Literal["float32", "bf16"]


def _as_tuple(value: Any) -> Any:
    """Let a single number stand for a list of one."""
    return (value,) if isinstance(value, int) else value


class Evaluate(Settings):
    """Evaluation of distilled sets by the classifiers that are trained on them."""

    protocols: tuple[Annotated[str, OneOf(PROTOCOLS)], ...] = Field(
        ("minimax",),
        description="minimax: hard labels; rded: soft labels of the teacher for every augmented batch; "
        "rded-stored: one soft label per image",
    )
    networks: tuple[Annotated[str, OneOf(NETWORKS)], ...] = Field(
        ("ConvNet-6",), description="classifiers; with instance norm under minimax, else batch norm"
    )
    width: Positive = Field(128, description="channels of a ConvNet; a ResNet has its own number")
    input_size: Positive = Field(224, description="side of the images in pixels")
    epochs: Positive | None = Field(None, description="training epochs; none: the protocol's number for the ipc")
    full_epochs: Positive = Field(300, description="training epochs on the full train split")
    validations: Positive = Field(
        100, description="validations spread over a training; only minimax has those before the last fifth"
    )
    repeats: Positive = Field(3, description="trainings of each network on each set")
    plain_repeats: int = Field(
        0,
        ge=0,
        description="further trainings of each network on each set, without augmentation and mixing: for DD-Ranking's "
        "augmentation-robust score",
    )
    batch_size: Positive | None = Field(
        None, description="minimax only: images per training step; none: 64, and 128 for more than 100 classes"
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="minimax only: learning rate of the first epoch; none: 0.01, and 0.1 for more than 100 classes",
    )
    precision: Precision = Field(
        "float32", description="that classifiers compute in; bf16 uses the matrix units of GPUs since Ampere"
    )
    flip: bool = Field(
        True, description="mirror half of the images; false where that changes the class, as with digits"
    )
    factor: Positive = Field(
        1, description="patches per image side in the rded protocol and method; RDED: 2 for ImageNet-1K, Tiny-ImageNet"
    )
    temperature: float = Field(20.0, gt=0, description="soft labels only: softmax temperature of student and teacher")
    rded_epochs: Annotated[tuple[Positive, ...] | None, BeforeValidator(_as_tuple)] = Field(
        None,
        description="soft labels only: training epochs, a number or several, each with its own trials; none: `epochs`, "
        "or 300",
    )
    rded_batch_size: Positive | None = Field(
        None,
        description="soft labels only: images per training step; none: by ipc and classes; RDED: 100 for Tiny-ImageNet",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_unique(self, "protocols", "networks", *(["rded_epochs"] if self.rded_epochs is not None else []))
        if self.input_size % self.factor:
            raise ValueError(f"input_size must be a multiple of factor, {self.factor}, not {self.input_size}")
        for name in self.protocols:
            check_input_size(self.networks, self.input_size, PROTOCOLS[name].norm, "networks")
        if self.rded_batch_size == 1:
            raise ValueError("rded_batch_size must be 2 or more: batch norm needs several images")
        for name in dict.fromkeys(name for protocol in PROTOCOLS.values() for name in protocol.settings):
            users = [protocol.name for protocol in PROTOCOLS.values() if name in protocol.settings]
            is_set = getattr(self, name) != type(self).model_fields[name].default
            if is_set and not set(users) & set(self.protocols):
                one_of = " or ".join(users)
                raise ValueError(f"{name} is for {one_of} only; add {one_of} to protocols or leave {name} out")
        return self


SCORES: Final = pa.schema(
    [
        column(
            "trial_id",
            pa.string(),
            "method, protocol, ipc, seed, network and repeat, joined by hyphens; then the epochs where there are "
            "several numbers of them, and `plain` without augmentation",
        ),
        column("protocol", pa.string(), "the evaluation protocol, such as minimax"),
        column("network", pa.string(), "the classifier that was trained"),
        column("method", pa.string(), "how the training set was made, such as vlcp, random or full"),
        column("ipc", pa.int32(), "images per class; 0 for the full train split"),
        column("seed", pa.int32(), "the seed of the distilled set"),
        column("repeat", pa.int32(), "number of the training on this set, from 0"),
        column("augmented", pa.bool_(), "whether the training images were augmented and mixed"),
        column("top1_last", pa.float32(), "accuracy on val after the last epoch, a fraction of 1"),
        column("top1_best", pa.float32(), "best accuracy on val over all validations, a fraction of 1"),
        column("top5_last", pa.float32(), "top-5 accuracy on val after the last epoch, a fraction of 1"),
        column(
            "train_top1",
            pa.float32(),
            "accuracy on the training images themselves, by their labels, after the last epoch, a fraction of 1",
        ),
        column("train_loss", pa.float32(), "mean training loss of the last epoch; not a number where it diverged"),
        column(
            "outcome",
            pa.string(),
            "empty, or why the scores are not counted: `did_not_learn` (after the last epoch the network guesses on "
            "val and on the training images) or `diverged` (a loss that is not finite)",
        ),
        column("epochs", pa.int32(), "training epochs"),
        column("steps", pa.int64(), "training steps, over all epochs"),
        column("batch_size", pa.int32(), "images per training step"),
        column(
            "labels",
            pa.string(),
            "`hard`: the class; `stored`: one soft label per image; `teacher`: the teacher's, of every augmented batch",
        ),
        column("teacher", pa.string(), "network and training of the teacher; empty under hard labels"),
        column("image_bytes", pa.int64(), "bytes of the files of the training images"),
        column("label_bytes", pa.int64(), "bytes of the stored soft labels, in float32; 0 without them"),
        column("teacher_bytes", pa.int64(), "bytes of the teacher's weights, where it labels every batch; else 0"),
        column("seconds", pa.float32(), "wall-clock seconds of the trial"),
        column(
            "curve", pa.list_(pa.float32()), "accuracy on val at every validation, in order; the last one is top1_last"
        ),
        column(
            "per_class",
            pa.list_(pa.float32()),
            "accuracy on the val images of each label after the last epoch, 0 for a label without images",
        ),
        column(
            "confusion",
            pa.list_(pa.int32()),
            "number of val images by label and predicted label, row by row; empty for more than 100 classes",
        ),
    ]
)


@dataclass(frozen=True)
class Trial:
    """One training of one network on one set under one protocol; ipc 0 is the full train split.

    Args:
        epochs: where the settings list several numbers of epochs; 0: the only one.
        augmented: whether the training images are augmented and mixed.
        stream: the name that random numbers follow from, of a set that was made elsewhere; empty: the method.
    """

    method: str
    protocol: str
    network: str
    ipc: int
    seed: int
    repeat: int
    epochs: int = 0
    augmented: bool = True
    stream: str = ""

    @property
    def trial_id(self) -> str:
        """The name of the trial and of its file: `vlcp-minimax-ipc5-seed0-ConvNet-3-r1`."""
        name = f"{self.method}-{self._key}"
        name = f"{name}-{self.epochs}epochs" if self.epochs else name
        return name if self.augmented else f"{name}-plain"

    @property
    def seed_key(self) -> str:
        """The part of the name that random numbers follow from: other epochs start with the same weights."""
        return f"{self.stream or self.method}-{self._key}"

    @property
    def _key(self) -> str:
        return f"{self.protocol}-ipc{self.ipc}-seed{self.seed}-{self.network}-r{self.repeat}"

    def count_epochs(self, settings: Evaluate, classes: int) -> int:
        """Return the number of training epochs."""
        return self.epochs or PROTOCOLS[self.protocol].epochs(settings, self.ipc, classes)


#: The setting of a step, beside those of the job, that names what the random numbers of a given set follow from.
STREAM: Final = "stream"
#: The teacher of a row of SCORES whose stored soft labels came with the set.
OWN_LABELS: Final = "the set itself"


def list_trials(step: "Step", settings: Evaluate) -> list[Trial]:
    """List the trials of one set: one for each protocol, number of epochs, network and repeat, with augmentation and,
    where the settings ask for them, without.

    The full train split, whose step has no set among its inputs, is trained on once per network.
    """
    is_full, key = "set" not in step.inputs, step.key
    ipc, stream = key.get("ipc", 0), step.settings.get(STREAM, "")
    protocols = [name for name in settings.protocols if PROTOCOLS[name].trains_full] if is_full else settings.protocols
    return [
        Trial(key["method"], protocol, network, ipc, key.get("seed", 0), repeat, epochs, augmented, stream)
        for protocol in protocols
        for epochs in (not is_full and PROTOCOLS[protocol].budgets(settings)) or (0,)
        for network in settings.networks
        for augmented, repeats in (
            [(True, 1)] if is_full else [(True, settings.repeats), (False, settings.plain_repeats)]
        )
        for repeat in range(repeats)
    ]


def hashed_settings(job: "Job", *, full: bool = False) -> dict[str, Any]:
    """Return the settings that determine the scores of a set, or of the full train split.

    They include what the protocols themselves fix, under `recipes`.
    """
    settings = job.evaluate.model_dump()
    protocols = [PROTOCOLS[name] for name in job.evaluate.protocols]
    if full:
        settings = {name: value for name, value in settings.items() if name not in _EXCLUDED_FOR_FULL}
        protocols = [protocol for protocol in protocols if protocol.trains_full]
    return settings | {"recipes": {protocol.name: protocol.hashed_settings() for protocol in protocols}}


#: Settings without effect on the full train split, which is trained on once, under one protocol.
_EXCLUDED_FOR_FULL: Final = {
    "protocols",
    "repeats",
    "plain_repeats",
    "epochs",
    "factor",
    "temperature",
    "rded_epochs",
    "rded_batch_size",
}


def _first_network_flops(job: "Job") -> int:
    settings = job.evaluate
    norm = PROTOCOLS[settings.protocols[0]].norm
    return int(NETWORKS[settings.networks[0]].forward_flops(settings.input_size, settings.width, 1, norm))


CLASSIFY: Final = Work(
    "evaluate",
    "evaluate",
    "vlcp_ray.stages.evaluate.bench:evaluate",
    on_cpu=(0.75, 5.0),
    # Assumed for small batches: less than half of what ResNet-50 reaches in large ones, 938 images/s (25 GFLOP each) on
    # an A100 of 312 TFLOPS in TF32, and 2,470 in mixed precision: github.com/NVIDIA/DeepLearningExamples.
    on_gpu=(0.03, 15.0),
    # On an H200 beside 16 cores a step takes 34 ms (ResNetAP-10) and 45 ms (ResNet-18 and its teacher), in float32 as
    # in bf16, with steps of 36 to 64 and of 50 images at 224 pixels: tests/benchmarks/README.md.
    launch=0.04,
    overhead="task",
    model=_first_network_flops,
)
#: The same in bfloat16.
CLASSIFY_BF16: Final = replace(
    CLASSIFY,
    name="evaluate-bf16",
    batch="vlcp_ray.stages.evaluate.bench:evaluate_bf16",
    on_gpu=(0.1, 15.0),
    wanted=lambda job: job.evaluate.precision == "bf16",
)


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    trials = [trial for step in steps for trial in list_trials(step, inputs.job.evaluate)]
    images = sum(_epochs(inputs, trial) * _images(inputs, trial) for trial in trials)
    flops = [_trial_flops(inputs, trial) for trial in trials]
    work = CLASSIFY_BF16 if inputs.job.evaluate.precision == "bf16" else CLASSIFY
    steps_taken = sum(_steps(inputs, trial) for trial in trials)
    yield Load(work, images, sum(flops), units=len(trials), largest=max(flops), batches=steps_taken)


def _epochs(inputs: "CostInputs", trial: Trial) -> int:
    return trial.count_epochs(inputs.job.evaluate, inputs.images.classes)


def _steps(inputs: "CostInputs", trial: Trial) -> int:
    classes, count = inputs.images.classes, _images(inputs, trial)
    per_epoch = PROTOCOLS[trial.protocol].steps_per_epoch(inputs.job.evaluate, trial.ipc, classes, count)
    return _epochs(inputs, trial) * per_epoch


def _images(inputs: "CostInputs", trial: Trial) -> int:
    return trial.ipc * inputs.images.classes or inputs.images.train


def _trial_flops(inputs: "CostInputs", trial: Trial) -> float:
    settings, teach, images = inputs.job.evaluate, inputs.job.teach, inputs.images
    protocol = PROTOCOLS[trial.protocol]
    epochs = _epochs(inputs, trial)
    student = inputs.models.classify(trial.network, settings.input_size, settings.width, images.classes, protocol.norm)
    teacher = inputs.models.classify(teach.network, settings.input_size, teach.width, images.classes, TEACHER_NORM)
    per_image = TRAINING_PASSES * student + (teacher if protocol.labels == "teacher" else 0.0)
    validation_passes = len(protocol.validated_epochs(epochs, settings.validations)) * images.val
    return epochs * _images(inputs, trial) * per_image + validation_passes * student


STAGE: Final = Stage(
    "evaluate",
    version=5,
    summary="SYNTHETIC + IMAGES(val) -> SCORES",
    tables={"scores": SCORES},
    pools=("evaluate",),
    unit="trials",
    rows="trials",
    works=(CLASSIFY, CLASSIFY_BF16),
    loads=_loads,
)
