"""Knows the network that is trained on the real images: how it learns, how one is loaded, and what it sees in images.

It gives the soft labels of the rded protocol and the features by which Herding and K-Center choose.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlcp_ray.augment import augment_plainly, normalise, shift
from vlcp_ray.config import Teach
from vlcp_ray.models.classifiers import DEPTHS, build_classifier, head_of
from vlcp_ray.protocols import training
from vlcp_ray.protocols.images import BATCH, LabelledImages, accuracy, check, ranked, to_device
from vlcp_ray.seeds import seed_for

MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 5e-4
CROP_SCALE: Final = (0.08, 1.0)
WARM_UP: Final = 0.2

_SMALL: Final = 64  # up to this size images are shifted, as is usual for CIFAR; crops of larger ones are resized
_PADDING: Final = 8  # a shift goes up to an eighth of the side: 4 pixels of 32
_LEAST: Final = 2  # see rded: batch norm and a single image
_NESTED: Final = ("model", "state_dict")
_CLASS_LISTS: Final = ("class_names", "classes")
_PREFIX: Final = "module."

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Taught:
    """A trained teacher: its weights on the CPU, and its accuracies on val as fractions of 1."""

    state: State
    class_names: tuple[str, ...]
    top1: float
    top5: float
    curve: tuple[float, ...]


def teach(
    train: LabelledImages, val: LabelledImages, class_names: Sequence[str], settings: Teach, seed: int, device: str
) -> Taught:
    """Train a network with batch norm on real images with hard labels.

    SGD with Nesterov momentum 0.9 and one cycle of the learning rate, which needs few epochs; images of up to 64 pixels
    are shifted by up to an eighth of their side, larger ones cropped (scale 0.08 to 1, as for ImageNet), and flipped
    unless told not to. The result depends on the images, their order, the settings and the seed; global random state
    is left alone.

    Args:
        train: pixels of (settings.input_size)^2.
        val: the same size; looked at, never learned from: the weights are those after the last epoch.

    Raises:
        ValueError: a set is empty, has images of another size, or labels that no class name belongs to.
    """
    for split, what in ((train, "train"), (val, "val")):
        check(split, f"teach: the {what} set", settings.input_size, class_names)
    network = _network(settings, len(class_names), settings.input_size, seed_for(seed, "teach", "weights")).to(device)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, on_val = to_device(train, device), to_device(val, device)
    generator = torch.Generator().manual_seed(seed_for(seed, "teach", "steps"))
    steps = settings.epochs * training.steps_per_epoch(len(images[1]), settings.batch_size, _LEAST)
    # The learning rate is set at every step.
    optimizer = torch.optim.SGD(
        network.parameters(), 0.0, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, fused=True
    )
    trained = training.train(
        optimizer,
        images,
        lambda pixels, labels: _loss(network, pixels, labels, generator, settings),
        lambda step: learning_rate_at(step, steps, settings.learning_rate),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        generator=generator,
        least=_LEAST,
    )
    checks = []
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for epoch in trained:
            if training.is_check(epoch, settings.epochs, settings.checks):
                checks.append(accuracy(ranked(network, on_val[0]), on_val[1]))
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    return Taught(state, tuple(class_names), *checks[-1], tuple(top1 for top1, _ in checks))


def learning_rate_at(step: int, steps: int, highest: float) -> float:
    """One cycle: linear from near 0 to the highest over a fifth of the steps, and by a cosine back to near 0.

    Args:
        step: from 0 to steps - 1.
    """
    rise = WARM_UP * steps
    place = step + 0.5
    if place < rise:
        return highest * place / rise
    return highest * 0.5 * (1 + math.cos(math.pi * (place - rise) / (steps - rise)))


def load_teacher(settings: Teach, state: Mapping[str, Tensor]) -> nn.Module:
    """The network that a state belongs to, in eval mode, frozen, on the CPU; it has as many outputs as the state.

    Raises:
        ValueError: the state is of another network than settings.network.
    """
    head = next((state[name] for name in _head_names(state)), None)
    if head is None:
        raise ValueError(
            f"teach.network: the weights have no linear layer, so they are not those of {settings.network}"
        )
    network = _network(settings, len(head), _size_of(settings, head.shape[1]), 0)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"teach.network: the weights are not those of {settings.network} with batch norm: "
            f"{' '.join(str(error).split())}"
        ) from error
    return network.eval().requires_grad_(False)


def load_checkpoint(data: bytes, class_names: Sequence[str], outputs: Sequence[str] = ()) -> State:
    """The state dict in a `.pth` file, as RDED and torchvision publish them, its outputs in the order of the classes.

    The state may lie under `model` or `state_dict`, its names may begin with `module.`. Only tensors and plain values
    are read, no code is run. Which class an output means is said by a list `class_names` or `classes` in the
    file; the rows of the last layer are picked by name. A file without one that has as many outputs as there are
    classes is taken to have them in the same order; of another number of outputs `outputs` says what they are.

    Args:
        class_names: the job's classes, in the order of their labels.
        outputs: the class of every output of a network of more classes, in the same words.

    Raises:
        ValueError: the bytes are no such file, or the outputs are not those of the classes.
    """
    found = _read(data)
    known = next((found[name] for name in _CLASS_LISTS if isinstance(found.get(name), list | tuple)), ())
    nested = next((found[name] for name in _NESTED if isinstance(found.get(name), Mapping)), found)
    state = {str(name).removeprefix(_PREFIX): value for name, value in nested.items() if isinstance(value, Tensor)}
    head = _head_names(state)
    if not head:
        raise ValueError("teach.checkpoint: the file has no weights of a linear layer; give a classifier's state dict")
    count = len(state[head[0]])
    rows = _rows(tuple(known or (outputs if count != len(class_names) else ())), count, class_names)
    bias = head[0].removesuffix("weight") + "bias"
    return state | {name: state[name][rows] for name in (head[0], bias) if name in state}


@torch.inference_mode()
def features(network: nn.Module, pixels: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.float32]:
    """What the last layer of a teacher is given: (n, 3, s, s) uint8 -> (n, d) float32, for Herding and K-Center.

    Args:
        network: of `load_teacher`; it is moved to the device and set to eval mode.
    """
    network = network.to(device).eval()
    seen: list[Tensor] = []
    hook = head_of(network).register_forward_pre_hook(lambda module, given: seen.append(given[0].float().cpu()))
    try:
        for start in range(0, len(pixels), BATCH):
            network(normalise(torch.tensor(pixels[start : start + BATCH], device=device)))
    finally:
        hook.remove()
    return torch.cat(seen).numpy()


@torch.inference_mode()
def soft_labels(network: nn.Module, pixels: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.float32]:
    """A teacher's class probabilities at temperature 1: (n, 3, s, s) uint8 -> (n, classes) float32, each row of sum 1.

    Args:
        network: of `load_teacher`; it is moved to the device and set to eval mode, so that an image is judged alone.
    """
    network = network.to(device).eval()
    batches = (torch.tensor(pixels[start : start + BATCH], device=device) for start in range(0, len(pixels), BATCH))
    return torch.cat([network(normalise(batch)).float().softmax(1).cpu() for batch in batches]).numpy()


def _loss(network: nn.Module, pixels: Tensor, labels: Tensor, generator: torch.Generator, settings: Teach) -> Tensor:
    if settings.input_size <= _SMALL:
        views = shift(pixels, generator, settings.flip, settings.input_size // _PADDING)
    else:
        views = augment_plainly(pixels, generator, settings.flip, CROP_SCALE)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=settings.mixed_precision == "bf16"):
        logits = network(views.contiguous(memory_format=torch.channels_last))
    return cross_entropy(logits.float(), labels)


def _network(settings: Teach, num_classes: int, input_size: int, seed: int) -> nn.Module:
    return build_classifier(
        settings.network, num_classes=num_classes, input_size=input_size, width=settings.width, seed=seed, norm="batch"
    )


def _size_of(settings: Teach, inputs: int) -> int:
    """An image size whose ConvNet has so many inputs to its last layer; the ResNets take any."""
    side = max(1, math.isqrt(inputs // settings.width))
    return side << DEPTHS.get(settings.network, 0)


def _head_names(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the linear layers' weights, the last layer's first."""
    return [name for name, value in state.items() if name.endswith("weight") and value.ndim == 2][::-1]


def _read(data: bytes) -> Mapping[Any, Any]:
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"teach.checkpoint: the file is no state dict that can be read without running code: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(f"teach.checkpoint: the file holds a {type(found).__name__}, not a state dict")
    return found


def _rows(outputs: tuple[str, ...], count: int, class_names: Sequence[str]) -> list[int]:
    """The output of every class, in the order of the classes."""
    if not outputs and count == len(class_names):
        return list(range(count))
    if len(outputs) != count:
        said = f"a class list of {len(outputs)}" if outputs else f"no class list, for {len(class_names)} classes"
        raise ValueError(f"teach.checkpoint: the network has {count} outputs and {said}")
    missing = [name for name in class_names if outputs.count(name) != 1]
    if missing:
        raise ValueError(
            f"teach.checkpoint: the file's classes must have each of the job's once; they do not have {missing[:5]}"
        )
    return [outputs.index(name) for name in class_names]
