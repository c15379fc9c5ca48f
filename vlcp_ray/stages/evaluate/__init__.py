"""evaluate: SYNTHETIC + IMAGES(val) -> SCORES; every trial trains a classifier from scratch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import pyarrow as pa
from pydantic import BeforeValidator, Field, model_validator

from vlcp_ray.models.networks import (
    NETWORKS,
    REFUSED,
    TEACHER_NORM,
    check_batch_size,
    check_input_size,
    check_width,
)
from vlcp_ray.protocols import PROTOCOLS, rded
from vlcp_ray.schemas import column
from vlcp_ray.settings import OneOf, Positive, Settings, check_unique
from vlcp_ray.stages.stage import TRAINING_PASSES, Load, Memory, Stage, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step


Precision = Literal["float32", "bf16"]
NetworkName = Annotated[str, OneOf(NETWORKS, title="Networks", refused=REFUSED)]


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
    networks: tuple[NetworkName, ...] = Field(
        ("ConvNet-6",),
        description="classifiers, listed below; ours with instance norm under minimax, else batch norm, those of "
        "torchvision with the norm of their own",
    )
    width: Positive = Field(128, description="channels of a ConvNet; other networks have their own number")
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
    rded_learning_rates: dict[NetworkName, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="soft labels only: learning rate of the first epoch by network; others have RDED's: "
        f"{', '.join(f'{name} {rate:g}' for name, rate in rded.LEARNING_RATES.items())}, else "
        f"{rded.RECIPE.learning_rate:g}",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_unique(self, "protocols", "networks", *(["rded_epochs"] if self.rded_epochs is not None else []))
        if self.input_size % self.factor:
            raise ValueError(f"input_size must be a multiple of factor, {self.factor}, not {self.input_size}")
        for name in self.protocols:
            check_input_size(self.networks, self.input_size, PROTOCOLS[name].norm, "networks")
            check_batch_size(self.networks, self.batch_size, PROTOCOLS[name].norm, "networks")
        check_width(self.networks, self.width != type(self).model_fields["width"].default, "networks")
        for name in self.rded_learning_rates:
            if name not in self.networks:
                raise ValueError(f"rded_learning_rates: {name} is none of networks; add it there or leave it out")
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
    wanted = step.settings.get("protocols", settings.protocols)
    protocols = [name for name in settings.protocols if PROTOCOLS[name].trains_full] if is_full else wanted
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


def with_soft_labels(settings: Evaluate) -> Evaluate:
    """Return the settings of the trainings with soft labels only: those of every teacher but the first."""
    protocols = tuple(name for name in settings.protocols if PROTOCOLS[name].needs_teacher)
    used = {name for protocol in protocols for name in PROTOCOLS[protocol].settings}
    others = {name for protocol in PROTOCOLS.values() for name in protocol.settings} - used
    defaults = {name: Evaluate.model_fields[name].default for name in others}
    return settings.model_copy(update={"protocols": protocols, **defaults})


def hashed_settings(evaluate: Evaluate, *, full: bool = False) -> dict[str, Any]:
    """Return the settings that determine the scores of a set, or of the full train split.

    They include what the protocols themselves fix, under `recipes`, and under `rded_learning_rates` the rates of
    networks that have another one than the recipe's.
    """
    settings = evaluate.model_dump(exclude={"rded_learning_rates"})
    protocols = [PROTOCOLS[name] for name in evaluate.protocols]
    rates = {name: rded.learning_rate_for(evaluate, name) for name in evaluate.networks}
    rates = {name: rate for name, rate in rates.items() if rate != rded.RECIPE.learning_rate}
    if rates and not full and any(protocol.needs_teacher for protocol in protocols):
        settings["rded_learning_rates"] = rates
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
    from vlcp_ray.cost.flops import classifier_flops

    settings = job.evaluate
    norm = PROTOCOLS[settings.protocols[0]].norm
    return int(classifier_flops(settings.networks[0], settings.input_size, settings.width, 1, norm))


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
    by_step = [(step, trial) for step in steps for trial in list_trials(step, inputs.job.evaluate)]
    trials = [trial for _, trial in by_step]
    images = sum(_epochs(inputs, trial) * _images(inputs, trial) for trial in trials)
    flops = [_trial_flops(inputs, step, trial) for step, trial in by_step]
    work = CLASSIFY_BF16 if inputs.job.evaluate.precision == "bf16" else CLASSIFY
    steps_taken = sum(_steps(inputs, trial) for trial in trials)
    yield Load(work, images, sum(flops), units=len(trials), largest=max(flops), batches=steps_taken)


def _epochs(inputs: "CostInputs", trial: Trial) -> int:
    return trial.count_epochs(inputs.job.evaluate, inputs.images.classes)


def _steps(inputs: "CostInputs", trial: Trial) -> int:
    classes, count = inputs.images.classes, _images(inputs, trial)
    protocol = PROTOCOLS[trial.protocol]
    per_epoch = protocol.steps_per_epoch(inputs.job.evaluate, trial.network, trial.ipc, classes, count)
    return _epochs(inputs, trial) * per_epoch


def _images(inputs: "CostInputs", trial: Trial) -> int:
    return trial.ipc * inputs.images.classes or inputs.images.train


def _trial_flops(inputs: "CostInputs", step: "Step", trial: Trial) -> float:
    settings, teach, images = inputs.job.evaluate, inputs.job.teach, inputs.images
    protocol = PROTOCOLS[trial.protocol]
    epochs = _epochs(inputs, trial)
    student = inputs.models.classify(trial.network, settings.input_size, settings.width, images.classes, protocol.norm)
    per_image = TRAINING_PASSES * student
    if protocol.labels == "teacher":
        name = step.inputs["teacher"].settings["network"]
        per_image += inputs.models.classify(name, settings.input_size, teach.width, images.classes, TEACHER_NORM)
    validation_passes = len(protocol.validated_epochs(epochs, settings.validations)) * images.val
    return epochs * _images(inputs, trial) * per_image + validation_passes * student


def count_classes(job: "Job") -> int:
    """Return the number of classes that a job expects; ten where it does not say, which counts little."""
    return job.ingest.expect.classes if job.ingest.expect else 10


def _memory(job: "Job", _: "ModelMemory", __: "Scale") -> Iterator[Memory]:
    """Yield what the largest training needs, where a network of it is torchvision's."""
    settings, classes = job.evaluate, count_classes(job)
    soft = any(PROTOCOLS[name].needs_teacher for name in settings.protocols)
    names = [*settings.networks, *(job.teach.network if soft else ())]
    if not any(NETWORKS[name].is_of_torchvision for name in names):
        return
    from vlcp_ray.cost.classifiers import training_gib, weights_gib
    from vlcp_ray.methods import METHODS

    size, width, ipc = settings.input_size, settings.width, max(job.ipc)
    is_full = any(METHODS[name].form == "train split" for name in job.compare.methods)
    needs = []
    for protocol in (PROTOCOLS[name] for name in settings.protocols):
        images = protocol.batch_size(settings, ipc, classes, ipc * classes)
        if not (is_full and protocol.trains_full):  # a set may be smaller than a batch, the train split is not
            images = min(images, ipc * classes)
        teachers = job.teach.network if protocol.labels == "teacher" else ()
        beside = max((weights_gib(name, size, job.teach.width, classes, TEACHER_NORM) for name in teachers), default=0)
        needs += [
            beside + training_gib(name, size, width, classes, protocol.norm, images) for name in settings.networks
        ]
    fix = (
        "lower evaluate.batch_size and rded_batch_size, or give the pool evaluate a larger share of a GPU (num_gpus "
        "in the scale file)"
    )
    yield Memory(STAGE.name, "evaluate.networks", STAGE.pools[0], max(needs), max(needs), fix)


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
    memory=_memory,
)
