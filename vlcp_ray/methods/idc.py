"""idc-1 and idc: images whose pixels give networks the gradients that real images give them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from vlcp_ray.methods.method import Method, Part, Run, partition
from vlcp_ray.models.networks import NETWORKS, OWN, check_input_size
from vlcp_ray.settings import ConfigError, Fraction, OneOf, Positive, Settings
from vlcp_ray.stages import evaluate, generate
from vlcp_ray.stages.stage import TRAINING_PASSES, Load, Memory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import torch
    from torch import Tensor, nn

    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.images import Pixels
    from vlcp_ray.protocols.labelled_images import LabelledImages
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step


class IDC(Settings):
    """The matching of gradients by idc-1 and idc."""

    network: Annotated[str, OneOf(OWN)] = Field(
        "ResNetAP-10", description="whose gradients are compared, with instance norm; IDC: ConvNet-3 for 32 pixels"
    )
    width: Positive = Field(128, description="channels of a ConvNet; a ResNet has its own number")
    outer_steps: Positive = Field(500, description="new networks, one after the other; IDC: 2,000 for CIFAR")
    inner_steps: Positive = Field(100, description="steps with each network, in which it is trained as well")
    batch_size: Positive = Field(
        64, description="real images of a class that a step compares with; IDC: 128 for more than 100 classes"
    )
    distance: Literal["l1", "mse"] = Field(
        "l1", description="of two gradients: sum of absolute or of squared differences; IDC: mse for CIFAR"
    )
    learning_rate: float = Field(
        3e-3, gt=0, description="for the pixels of 10 images per class; it grows with their number. IDC: 1e-3 "
        "for ImageNet-100, 5e-3 for CIFAR"
    )  # fmt: skip
    train_images: Positive = Field(
        500, description="real images on which a network is trained in each inner step; IDC: 2,000 for CIFAR"
    )
    cutmix: Fraction = Field(
        1.0, description="share of the batches of this training that CutMix mixes; IDC: 0.5 for CIFAR"
    )
    pretrain_epochs: int = Field(
        0,
        ge=0,
        description="epochs on all real images before the first inner step; IDC: 10 for ten classes of ImageNet",
    )
    classes: Positive = Field(
        20, description="most classes that are made together, with the same networks, which tell them apart"
    )


#: As in snu-mllab/Efficient-Dataset-Condensation: condense.py and argument.py.
PIXEL_MOMENTUM: Final = 0.5
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4  # of the networks
MOST_COMPARED: Final = 128  # synthetic images of a class in a step
RATE_FOR: Final = 10  # images per class that the setting `learning_rate` is for
_TOO_LITTLE_MEMORY: Final = (
    "compare.idc.batch_size: the gradients of so many images do not fit into a worker's share of the GPU's memory; "
    "lower it, or give the pool evaluate a larger one (num_gpus in the scale file)"
)


def list_parts(job: "Job", labels: Sequence[int], runs: Sequence[Run]) -> list[Part]:
    """List the partitions of classes of every set, the largest sets first."""
    own = partition(labels, job.compare.idc.classes)
    return [Part(classes, (run,)) for run in sorted(runs, key=lambda run: (-run[1], run[0])) for classes in own]


def make_images(rows: "pa.Table", part: Part, teacher: None, job: "Job", device: str) -> "dict[Run, pa.Table]":
    """Make the images of some classes for one set of idc-1.

    Args:
        rows: the training images of the classes.
        part: the classes, and the set.
        teacher: unused.
        job: settings; the images have `evaluate.input_size` pixels.
        device: torch device.

    Raises:
        ValueError: a class has fewer images than ipc, the pixels diverge, or the GPU has too little memory.
    """
    return _make("idc-1", 1, rows, part, job, device)


def make_tiled_images(rows: "pa.Table", part: Part, teacher: None, job: "Job", device: str) -> "dict[Run, pa.Table]":
    """Make the images of some classes for one set of idc, decoded: factor x factor images of each.

    Args:
        rows, part, teacher, job, device: as in `make_images`.
    """
    return _make("idc", job.compare.idc_factor, rows, part, job, device)


def _make(kind: str, factor: int, rows: "pa.Table", part: Part, job: "Job", device: str) -> "dict[Run, pa.Table]":
    from vlcp_ray.methods.synthetic_rows import from_pixels
    from vlcp_ray.models.batches import naming_memory_fix
    from vlcp_ray.protocols.labelled_images import prepare
    from vlcp_ray.seeds import seed_for

    names = dict(zip(rows["label"].to_pylist(), rows["class_name"].to_pylist(), strict=True))
    ((_, ipc),) = part.runs
    for label in part.labels:
        count = rows["label"].to_pylist().count(label)
        if count < ipc:
            raise ValueError(f"class {names.get(label, label)!r}: {count} images are fewer than ipc = {ipc}: lower ipc")
    seed = seed_for(part.seed, kind, ipc, *part.labels)
    with naming_memory_fix(_TOO_LITTLE_MEMORY):
        images = prepare(rows, job.evaluate.input_size)
        pixels = match_gradients(images, ipc, job.compare.idc, factor=factor, seed=seed, device=device)
    each = ipc * factor**2
    classes = [(label, names[label]) for label in part.labels for _ in range(each)]
    numbers = [number for _ in part.labels for number in range(each)]
    return {part.runs[0]: from_pixels(kind, classes, numbers, pixels, part.seed)}


def match_gradients(
    images: "LabelledImages", ipc: int, settings: IDC, *, factor: int, seed: int, device: str
) -> "Pixels":
    """Optimise the pixels of `ipc` images of each class so that they give the gradients of real ones (Kim et al. 2022).

    Every outer step takes a new network. Every inner step compares, class by class, the gradients of the cross entropy
    of a real and a synthetic batch with respect to the weights of the convolutions, both under the same augmentation,
    and moves the pixels; then it trains the network on real images. Pixels begin as those of real images, and are
    clipped to [0, 1] before each outer step and at the end.

    Args:
        images: the real images of the classes; each label has at least `ipc`.
        ipc: images per class.
        settings: networks, steps and rates.
        factor: an image holds factor x factor smaller ones, each of which is enlarged where it is compared.
        seed: of the first pixels, the networks, their batches and augmentations.
        device: torch device.

    Returns:
        (classes * ipc * factor^2, s, s, 3) uint8, sorted by label.

    Raises:
        ValueError: the pixels diverge.
    """
    import numpy as np
    import torch

    from vlcp_ray.models.classifiers import build_classifier
    from vlcp_ray.protocols.diff_augment import augment_together
    from vlcp_ray.seeds import seed_for

    generator = torch.Generator().manual_seed(seed_for(seed, "steps"))
    labels, targets = np.unique(images.labels, return_inverse=True)
    rows = [torch.from_numpy(np.flatnonzero(targets == number)) for number in range(len(labels))]
    real = RealImages(images.pixels, torch.from_numpy(targets.astype(np.int64)), device)
    pixels = torch.stack([first_pixels(real, own, ipc, factor, generator) for own in rows]).requires_grad_()
    rate = settings.learning_rate * ipc / RATE_FOR
    optimizer = torch.optim.SGD([pixels], rate, PIXEL_MOMENTUM)
    size = images.pixels.shape[-1]
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for outer in range(settings.outer_steps):
            network = build_classifier(
                settings.network,
                num_classes=len(labels),
                input_size=size,
                width=settings.width,
                seed=seed_for(seed, "weights", outer),
            ).to(device)
            trainer = NetworkTrainer(network, real, settings, generator)
            for _ in range(settings.pretrain_epochs):
                trainer.train(len(images.labels))
            with torch.no_grad():
                pixels.clamp_(0, 1)
            for _ in range(settings.inner_steps):
                for number, own in enumerate(rows):
                    taken = own[torch.randperm(len(own), generator=generator)[: settings.batch_size]]
                    made = decode(pixels[number], factor)
                    if len(made) > MOST_COMPARED:
                        made = made[torch.randperm(len(made), generator=generator)[:MOST_COMPARED].to(device)]
                    views = augment_together(normalised(torch.cat([real.pixels(taken), made])), generator)
                    loss = gradient_distance(network, views, len(taken), number, settings.distance)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                trainer.train(settings.train_images)
        decoded = decode(pixels.detach().flatten(0, 1).clamp_(0, 1), factor)
    if not torch.isfinite(decoded).all():
        raise ValueError("compare.idc: the pixels diverge; lower learning_rate")
    by_class = decoded.view(factor**2, len(labels), ipc, 3, size, size).transpose(0, 1).flatten(0, 2)
    made_pixels: Pixels = by_class.mul(255).round_().permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return made_pixels


def gradient_distance(
    network: "nn.Module", views: "Tensor", real: int, label: int, distance: Literal["l1", "mse"]
) -> "Tensor":
    """Compute how far the gradients of real and synthetic images are apart, over the weights of all convolutions.

    Args:
        network: the classifier.
        views: (n, 3, s, s), normalised: real images, then synthetic ones, all of one class.
        real: number of real images.
        label: their class.
        distance: sum of absolute or of squared differences.

    Returns:
        A scalar, whose gradient goes to the synthetic images only.
    """
    import torch
    from torch.nn.functional import cross_entropy

    weights = [weight for weight in network.parameters() if weight.ndim == 4]

    def gradients(images: "Tensor", *, differentiable: bool) -> "tuple[Tensor, ...]":
        loss = cross_entropy(network(images), torch.full((len(images),), label, device=images.device))
        return torch.autograd.grad(loss, weights, create_graph=differentiable)

    wanted = gradients(views[:real].detach(), differentiable=False)
    differences = [given - own for given, own in zip(wanted, gradients(views[real:], differentiable=True), strict=True)]
    terms = [(one.abs() if distance == "l1" else one.square()).sum() for one in differences]
    return torch.stack(terms).sum()


class RealImages:
    """Real images, kept as 8-bit pixels in the memory of the machine.

    Args:
        stored: (n, 3, s, s) uint8.
        targets: (n,) the number of the class of each.
        device: of the batches.
    """

    def __init__(self, stored: "npt.NDArray[np.uint8]", targets: "Tensor", device: str) -> None:
        import torch

        self.stored, self.targets, self.device = torch.tensor(stored), targets, device

    def pixels(self, rows: "Tensor") -> "Tensor":
        """Return some images: (n, 3, s, s) float32 in [0, 1], on the device."""
        return self.stored[rows].to(self.device).float().div_(255)


class NetworkTrainer:
    """Train a network on real images: SGD, DiffAug of each image on its own but for the cut-out, CutMix."""

    def __init__(self, network: "nn.Module", real: RealImages, settings: IDC, generator: "torch.Generator") -> None:
        import torch

        self.network, self.real, self.settings, self.generator = network, real, settings, generator
        self.optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)

    def train(self, count: int) -> None:
        """Train on about `count` random images: as many batches as they fill, the last one filled up."""
        import torch

        order = torch.randperm(len(self.real.targets), generator=self.generator)
        size = self.settings.batch_size
        for rows in torch.split(order[: -(-count // size) * size], size):
            loss = self._loss(rows)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def _loss(self, rows: "Tensor") -> "Tensor":
        import torch
        from torch.nn.functional import cross_entropy

        from vlcp_ray.protocols.augment import cutmix
        from vlcp_ray.protocols.diff_augment import augment_each

        views = augment_each(normalised(self.real.pixels(rows)), self.generator)
        labels = self.real.targets[rows].to(self.real.device)
        if float(torch.rand((), generator=self.generator)) >= self.settings.cutmix:
            return cross_entropy(self.network(views), labels)
        mixed, own, pasted, share = cutmix(views, labels, self.generator)
        logits = self.network(mixed)
        return share * cross_entropy(logits, own) + (1 - share) * cross_entropy(logits, pasted)


def normalised(images: "Tensor") -> "Tensor":
    """Standardise a batch that is used for nothing else, in place: the input of a classifier."""
    from vlcp_ray.protocols.augment import standardise

    return standardise(images)


def first_pixels(real: RealImages, rows: "Tensor", ipc: int, factor: int, generator: "torch.Generator") -> "Tensor":
    """Return random real images of a class, tiled factor x factor: (ipc, 3, s, s) float32.

    A class with fewer images than tiles gives some images several times.
    """
    import torch
    from torch.nn.functional import interpolate

    count = ipc * factor**2
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(-(-count // len(rows)))])
    images = real.pixels(rows[order[:count]])
    size = images.shape[-1]
    side, made = -(-size // factor), images[:ipc].clone()
    for tile in range(factor**2 if factor > 1 else 0):
        top, left = (side * place for place in divmod(tile, factor))
        into = made[:, :, top : top + side, left : left + side]
        into.copy_(interpolate(images[tile * ipc : (tile + 1) * ipc], size=into.shape[2:]))
    return made


def decode(pixels: "Tensor", factor: int) -> "Tensor":
    """Enlarge the tiles of images to images: (n, 3, s, s) -> (n * factor^2, 3, s, s), tile by tile; differentiable."""
    import torch
    from torch.nn.functional import pad

    from vlcp_ray.protocols.augment import crop_together

    if factor == 1:
        return pixels
    size = pixels.shape[-1]
    side = -(-size // factor)
    padded = pad(pixels, (0, side * factor - size) * 2, value=0.5)
    boxes = [(left * side, top * side, side, side) for top in range(factor) for left in range(factor)]
    return torch.cat([crop_together(padded, box, size=size) for box in boxes])


def _settings(factor: int | None) -> Any:
    def settings(job: "Job", base_model: str) -> dict[str, Any]:
        own = job.compare.idc.model_dump()
        if NETWORKS[own["network"]].poolings == 0:
            del own["width"]
        return own | {"image_size": job.evaluate.input_size, "factor": factor or job.compare.idc_factor}

    return settings


def _loads(factor: int | None) -> Any:
    def loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
        job, images = inputs.job, inputs.images
        settings, tiles = job.compare.idc, (factor or job.compare.idc_factor) ** 2
        parts = list_parts(job, range(images.classes), [(step.key["seed"], step.key["ipc"]) for step in steps])
        passes = [
            _passes(settings, len(part.labels), images.train / images.classes, part.runs[0][1], tiles) for part in parts
        ]
        each = inputs.models.classify(
            settings.network, job.evaluate.input_size, settings.width, images.classes, "instance"
        )
        batches = settings.outer_steps * settings.inner_steps * sum(len(part.labels) for part in parts)
        yield Load(
            evaluate.CLASSIFY,
            generate.count_images(inputs, steps),
            sum(passes) * each,
            units=len(parts),
            largest=max(passes) * each,
            batches=batches,
        )

    return loads


def _passes(settings: IDC, classes: int, train: float, ipc: int, tiles: int) -> float:
    """Count the forward passes of a part, in whose time the rest is expressed.

    Args:
        train: real images of a class.
        tiles: images in an image.
    """
    compared = min(MOST_COMPARED, ipc * tiles)
    # A gradient of a gradient takes a forward pass, the backward pass to the weights, and the backward passes of both.
    inner = classes * TRAINING_PASSES * (min(settings.batch_size, train) + 3 * compared)
    inner += TRAINING_PASSES * settings.train_images
    return settings.outer_steps * (
        settings.inner_steps * inner + settings.pretrain_epochs * TRAINING_PASSES * classes * train
    )


def _memory(kind: str, factor: int | None) -> Any:
    def memory(job: "Job", models: "ModelMemory", scale: "Scale") -> Iterator[Memory]:
        own, tiles = job.compare.idc, (factor or job.compare.idc_factor) ** 2
        made = min(MOST_COMPARED, max(job.ipc) * tiles)
        gib = models.match(own.network, own.width, job.evaluate.input_size, own.batch_size, made)
        fix = "lower it, or give the pool evaluate a larger share of a GPU (num_gpus in the scale file)"
        yield Memory(kind, "compare.idc.batch_size", evaluate.CLASSIFY.pool, gib, gib, fix)

    return memory


def _check(job: "Job") -> None:
    """Refuse a network that cannot learn from images of this size.

    Raises:
        ConfigError: names the setting and the networks that fit.
    """
    try:
        check_input_size([job.compare.idc.network], job.evaluate.input_size, "instance", "compare.idc.network")
    except ValueError as error:
        raise ConfigError(f"evaluate.{error}") from error


IDC_1: Final = Method(
    "idc-1",
    "images optimised from real ones until they give networks the gradients of real images",
    "Dataset Condensation via Efficient Synthetic-Data Parameterization (Kim et al. 2022), without multi-formation",
    "partition",
    ("images",),
    code="vlcp_ray.methods.idc:make_images",
    parts=list_parts,
    settings=_settings(1),
    loads=_loads(1),
    memory=_memory("idc-1", 1),
    optimised_from="real images",
    options=("idc",),
    check=_check,
)
TILED: Final = Method(
    "idc",
    "idc-1 with multi-formation: each image holds factor x factor smaller ones, which are enlarged to train on them",
    "Dataset Condensation via Efficient Synthetic-Data Parameterization (Kim et al. 2022)",
    "partition",
    ("images",),
    code="vlcp_ray.methods.idc:make_tiled_images",
    parts=list_parts,
    settings=_settings(None),
    loads=_loads(None),
    memory=_memory("idc", None),
    rows_per_image=lambda job: job.compare.idc_factor**2,
    optimised_from="real images",
    options=("idc", "idc_factor"),
    check=_check,
)
