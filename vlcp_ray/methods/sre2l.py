"""sre2l: images whose pixels a frozen teacher classifies, and whose statistics are those of its batch norm."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from vlcp_ray.methods.method import Method, Part, Run, partition
from vlcp_ray.models.networks import NETWORKS, TEACHER_NORM
from vlcp_ray.settings import ConfigError, Positive, Settings
from vlcp_ray.stages import evaluate, generate
from vlcp_ray.stages.stage import TRAINING_PASSES, Load, Memory

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import Tensor, nn

    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.images import Pixels
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step


class SRe2L(Settings):
    """The optimisation of pixels by sre2l."""

    steps: Positive = Field(4000, description="steps of Adam on each batch of images; SRe2L: 1,000 for CIFAR-100")
    learning_rate: float = Field(
        0.25, gt=0, description="of the first step; it falls to 0 along a cosine. SRe2L: 0.1 for Tiny-ImageNet"
    )
    bn_weight: float = Field(
        0.01, ge=0, description="weight of the distance to the statistics of batch norm; SRe2L: 1 for Tiny-ImageNet"
    )
    crop: bool = Field(
        True,
        description="crop a view for each step, and mirror half of the views where teach.flip is true; false for CIFAR",
    )
    shift: int = Field(
        32, ge=0, description="largest cyclic shift of a view in pixels; SRe2L: 4 for CIFAR and Tiny-ImageNet"
    )


#: As in VILA-Lab/SRe2L: recover/data_synthesis.py and small_dataset.
BETAS: Final = (0.5, 0.9)
EPSILON: Final = 1e-8
FIRST_LAYER: Final = 10.0  # weight of the first batch norm, that of the others is 1
CROP_SCALE: Final = (0.08, 1.0)
#: Images of a batch. Fewer would make its statistics noisy: with fewer classes it has several images of each.
BATCH: Final = 100
_TOO_LITTLE_MEMORY: Final = (
    f"compare.methods: sre2l optimises {BATCH} images at a time, which do not fit into a worker's share of the GPU's "
    "memory; give the pool evaluate a larger one (num_gpus in the scale file)"
)


def images_per_class(classes: int) -> int:
    """Return how many images of each class a batch has: 1 for 100 classes, 10 for 10."""
    return max(1, BATCH // classes)


def list_parts(job: "Job", labels: Sequence[int], runs: Sequence[Run]) -> list[Part]:
    """List the batches: up to 100 classes, and of each the next images. A smaller set is the beginning of a larger."""
    parts = []
    for seed in sorted({seed for seed, _ in runs}):
        for own in partition(labels, BATCH):
            each = images_per_class(len(own))
            for number in range(-(-max(ipc for s, ipc in runs if s == seed) // each)):
                needing = tuple(sorted(run for run in runs if run[0] == seed and run[1] > number * each))
                parts.append(Part(own, needing, number))
    return parts


def make_images(rows: "pa.Table", part: Part, teacher: "nn.Module", job: "Job", device: str) -> "dict[Run, pa.Table]":
    """Make the images of one batch, and return those of each set.

    Args:
        rows: labels and class names of the training images.
        part: the classes, the number of the batch, and the sets that have images of it.
        teacher: a network with batch norm, in eval mode.
        job: settings of the optimisation; the images have `teach.input_size` pixels.
        device: torch device of the teacher.

    Raises:
        ValueError: the teacher has no batch norm, the pixels diverge, or the GPU has too little memory.
    """
    from vlcp_ray.methods.synthetic_rows import from_pixels
    from vlcp_ray.models.batches import naming_memory_fix
    from vlcp_ray.seeds import seed_for

    names = dict(zip(rows["label"].to_pylist(), rows["class_name"].to_pylist(), strict=True))
    each = images_per_class(len(part.labels))
    labels = [label for _ in range(each) for label in part.labels]
    numbers = [part.number * each + number for number in range(each) for _ in part.labels]
    seed = seed_for(part.seed, "sre2l", part.number, *part.labels)
    with naming_memory_fix(_TOO_LITTLE_MEMORY):
        pixels = recover(
            teacher, labels, job.teach.input_size, job.compare.sre2l, flip=job.teach.flip, seed=seed, device=device
        )
    sets = {}
    for run in part.runs:
        taken = [row for row, number in enumerate(numbers) if number < run[1]]
        classes = [(labels[row], names[labels[row]]) for row in taken]
        sets[run] = from_pixels("sre2l", classes, [numbers[row] for row in taken], pixels[taken], part.seed)
    return sets


def recover(
    teacher: "nn.Module", labels: Sequence[int], size: int, settings: SRe2L, *, flip: bool, seed: int, device: str
) -> "Pixels":
    """Optimise the pixels of a batch from noise: the recovery of SRe2L (Yin et al. 2023).

    The loss is the teacher's cross entropy plus `bn_weight` times the distance of the batch's mean and variance to
    those of every batch norm, the first one ten times. All images of a batch get the same view in a step: a crop, a
    mirroring and a cyclic shift. The last pixels are returned, not the best, as by the released code.

    Args:
        teacher: in eval mode and frozen.
        labels: the class of each image, as a number of the teacher's output.
        size: height and width in pixels.
        settings: steps, learning rate, weight and views.
        flip: whether half of the cropped views are mirrored.
        seed: of the noise and of the views.
        device: torch device of the teacher.

    Returns:
        (n, size, size, 3) uint8.

    Raises:
        ValueError: the teacher has no batch norm, or the pixels diverge.
    """
    import math

    import torch
    from torch.nn.functional import cross_entropy

    from vlcp_ray.protocols.augment import normalise

    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(labels), 3, size, size, generator=generator).to(device).requires_grad_()
    black, white = (normalise(torch.full((1, 3, 1, 1), value, dtype=torch.uint8, device=device)) for value in (0, 255))
    targets = torch.tensor(labels, device=device)
    optimizer = torch.optim.Adam([pixels], settings.learning_rate, BETAS, EPSILON)
    loss = torch.zeros(())
    with (
        BatchNormDistance(teacher) as distance,
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        for step in range(settings.steps):
            optimizer.param_groups[0]["lr"] = (
                settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            )
            logits = teacher(view(pixels, settings, flip, generator))
            loss = cross_entropy(logits, targets) + settings.bn_weight * distance.pop()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(black, white)
    if not torch.isfinite(loss):
        raise ValueError("compare.sre2l: the pixels diverge; lower learning_rate or bn_weight")
    colours = (pixels.detach() - black) / (white - black)
    made: Pixels = colours.mul_(255).round_().permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return made


def view(pixels: "Tensor", settings: SRe2L, flip: bool, generator: "torch.Generator") -> "Tensor":
    """Return one view of all images: the same crop, mirroring and cyclic shift of each; differentiable."""
    import torch

    from vlcp_ray.protocols.augment import crop_boxes, crop_together

    if settings.crop:
        (box,) = crop_boxes(1, pixels.shape[-1], generator, CROP_SCALE)
        pixels = crop_together(pixels, box.tolist(), bool(torch.rand((), generator=generator) < (0.5 if flip else 0.0)))
    down, right = torch.randint(settings.shift + 1, (2,), generator=generator).tolist()
    return torch.roll(pixels, (down, right), (2, 3))


class BatchNormDistance:
    """Add up the distances of a batch to the statistics of every batch norm, as the batch passes through the network.

    For a layer: the norm of the difference of the means plus that of the variances, both over images and places of the
    layer's input, the variance without Bessel's correction.

    Raises:
        ValueError: the network has no batch norm.
    """

    def __init__(self, network: "nn.Module") -> None:
        from torch import nn

        self.layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        if not self.layers:
            raise ValueError("compare.methods: sre2l needs a teacher with batch norm, and this one has none")
        self.total: Tensor | float = 0.0

    def __enter__(self) -> "BatchNormDistance":
        weights = [FIRST_LAYER, *[1.0] * (len(self.layers) - 1)]
        self.hooks = [
            layer.register_forward_pre_hook(lambda module, given, weight=weight: self._add(module, given[0], weight))
            for layer, weight in zip(self.layers, weights, strict=True)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def pop(self) -> "Tensor | float":
        """Return the sum over the layers for the last forward pass."""
        total, self.total = self.total, 0.0
        return total

    def _add(self, layer: Any, given: "Tensor", weight: float) -> None:
        import torch

        # First over the places of each image: on a CPU this is faster than over images and places at once.
        variances, means = torch.var_mean(given.flatten(2), 2, correction=0)
        variance, mean = variances.mean(0) + means.var(0, correction=0), means.mean(0)
        distance = torch.linalg.vector_norm(layer.running_var - variance)
        self.total = self.total + weight * (distance + torch.linalg.vector_norm(layer.running_mean - mean))


def _settings(job: "Job", base_model: str) -> dict[str, Any]:
    constants = {"betas": BETAS, "first_layer": FIRST_LAYER, "crop_scale": CROP_SCALE, "batch": BATCH}
    return job.compare.sre2l.model_dump() | constants | {"flip": job.teach.flip, "image_size": job.teach.input_size}


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    job, classes = inputs.job, inputs.images.classes
    runs = [(step.key["seed"], step.key["ipc"]) for step in steps]
    parts = list_parts(job, range(classes), runs)
    optimised = sum(len(part.labels) * images_per_class(len(part.labels)) for part in parts)
    each = inputs.models.classify(job.teach.network[0], job.teach.input_size, job.teach.width, classes, TEACHER_NORM)
    count, taken = generate.count_images(inputs, steps), job.compare.sre2l.steps
    amount = TRAINING_PASSES * optimised * taken * each
    yield Load(evaluate.CLASSIFY, count, amount, units=len(parts), batches=len(parts) * taken)


def _memory(job: "Job", models: "ModelMemory", scale: "Scale") -> Iterator[Memory]:
    gib = models.recover(job.teach.network[0], job.teach.width, job.teach.input_size, BATCH)
    fix = "give the pool evaluate a larger share of a GPU (num_gpus in the scale file), or use larger ones"
    yield Memory("sre2l", "compare.methods: sre2l", evaluate.CLASSIFY.pool, gib, gib, fix)


def _check(job: "Job") -> None:
    """Refuse a teacher without batch norm: by its network, or by its file.

    Raises:
        ConfigError: names the setting and the fix.
    """
    from pathlib import Path

    if NETWORKS[job.teach.network[0]].own_norm not in ("", "batch"):
        raise ConfigError(
            f"teach.network: sre2l needs a teacher with batch norm, and {job.teach.network[0]} has none; name another "
            "network first, or leave sre2l out of compare.methods"
        )
    file = Path(job.teach.checkpoint).expanduser()
    if job.teach.checkpoint and file.is_file():
        from vlcp_ray.stages.teach.checkpoint import entry_names

        if not any(name.endswith("running_var") for name in entry_names(file.read_bytes())):
            raise ConfigError(
                f"teach.checkpoint: sre2l needs a teacher with batch norm, and {str(file)!r} has no statistics of one; "
                "name another file, or leave sre2l out of compare.methods"
            )


METHOD: Final = Method(
    "sre2l",
    "images optimised from noise until the teacher classifies them and its batch norm has its usual statistics",
    "Squeeze, Recover and Relabel (Yin et al. 2023)",
    "partition",
    ("images", "teacher"),
    code="vlcp_ray.methods.sre2l:make_images",
    parts=list_parts,
    columns=("label", "class_name"),
    settings=_settings,
    loads=_loads,
    memory=_memory,
    optimised_from="noise",
    options=("sre2l",),
    check=_check,
)
