"""Knows how a set of labelled images is judged: a classifier learns it from scratch and is tested on real images."""

import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlcp_ray import images
from vlcp_ray.augment import augment, cutmix, normalise
from vlcp_ray.config import Evaluate, Method, Network
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.seeds import seed_for

MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 5e-4
GAMMA: Final = 0.2

#: The protocol's epochs: up to this ipc, this many.
_EPOCHS: Final = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
_EPOCHS_BEYOND: Final = 300
_MANY_CLASSES: Final = 100

# What a core's share of the cache holds: 297 images of 32 px take 180 ms in batches of 64 and 240 ms in 128.
_VAL_BATCH: Final = 64

Split = tuple[Tensor, Tensor]  # pixels (n, 3, s, s) uint8 and labels (n,) int64, on the device


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images ready for a classifier: pixels (n, 3, s, s) uint8, labels (n,) int64."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trial:
    """One training of one network on one set; ipc 0 is the full train split."""

    method: Method
    network: Network
    ipc: int
    seed: int
    repeat: int

    @property
    def trial_id(self) -> str:
        """The trial in one word, good as a file's name: `vlcp-ipc5-seed0-ConvNet-3-r1`."""
        return f"{self.method}-ipc{self.ipc}-seed{self.seed}-{self.network}-r{self.repeat}"


def prepare(table: pa.Table, input_size: int) -> LabelledImages:
    """Decode the columns `image` and `label`: short side to `input_size` pixels, middle cut out (METHOD 3.1).

    Raises:
        ImageError: bytes that are no image.
    """
    pixels = np.empty((len(table), 3, input_size, input_size), np.uint8)
    for place, image in zip(pixels, table["image"], strict=True):
        place[:] = images.center_crop(images.decode(image.as_py()), input_size).transpose(2, 0, 1)
    return LabelledImages(pixels, table["label"].to_numpy().astype(np.int64))


def epochs_for(settings: Evaluate, ipc: int, num_classes: int) -> int:
    """The training epochs of a set: by the settings where they say it, else by the protocol's table (METHOD 3.1)."""
    if ipc == 0:
        return settings.full_epochs
    if settings.epochs is not None:
        return settings.epochs
    epochs = next((epochs for limit, epochs in _EPOCHS if ipc <= limit), _EPOCHS_BEYOND)
    return epochs if num_classes < _MANY_CLASSES else epochs * 2 // 3 // 100 * 100


def learning_rate_at(epoch: int, epochs: int, base: float) -> float:
    """The learning rate of an epoch, counted from 0: a fifth from 2/3 of the epochs on, and again from 5/6 on."""
    return base * GAMMA ** bisect_right((2 * epochs // 3, 5 * epochs // 6), epoch)


def run_trial(
    train: LabelledImages,
    val: LabelledImages,
    class_names: Sequence[str],
    settings: Evaluate,
    trial: Trial,
    device: str,
) -> dict[str, Any]:
    """Train a classifier on `train`, check it on `val` about a hundred times, and return a row of SCORES.

    The row depends on the images, their order, the settings and the trial; on one machine it comes out the same
    again, but for `seconds`, whatever ran before in the process. Global random state is left alone.

    Raises:
        ValueError: a set is empty, has images of another size, or labels that no class name belongs to.
    """
    started = time.perf_counter()
    for split, what in ((train, "train"), (val, "val")):
        _check(split, what, settings.input_size, class_names)
    epochs = epochs_for(settings, trial.ipc, len(class_names))
    network = build_classifier(
        trial.network,
        num_classes=len(class_names),
        input_size=settings.input_size,
        width=settings.width,
        seed=_seed(trial, "weights"),
    ).to(device)
    on_train, on_val = _to_device(train, device), _to_device(val, device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        trained = _train(network, on_train, settings, epochs, _seed(trial, "steps"))
        checks = [_accuracy(network, on_val) for epoch in trained if is_check(epoch, epochs, settings.checks)]
    return {
        "trial_id": trial.trial_id,
        "protocol": settings.protocol,
        "network": trial.network,
        "method": trial.method,
        "ipc": trial.ipc,
        "seed": trial.seed,
        "repeat": trial.repeat,
        "top1_last": checks[-1][0],
        "top1_best": max(top1 for top1, _ in checks),
        "top5_last": checks[-1][1],
        "epochs": epochs,
        "seconds": time.perf_counter() - started,
    }


def is_check(epoch: int, epochs: int, checks: int) -> bool:
    """Whether the network is tested after this epoch, counted from 1: about `checks` times, and after the last."""
    return epoch % max(1, epochs // checks) == 0 or epoch == epochs


def _train(network: nn.Module, train: Split, settings: Evaluate, epochs: int, seed: int) -> Iterator[int]:
    """Train for an epoch at a time and yield its number, from 1."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        network.parameters(), settings.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
    )
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch, epochs, settings.learning_rate)
        order = torch.randperm(len(train[1]), generator=generator).to(train[1].device)
        for batch in torch.split(order, settings.batch_size):
            loss = _loss(network, train[0][batch], train[1][batch], generator, settings.flip)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        yield epoch + 1


def _loss(network: nn.Module, pixels: Tensor, labels: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    views = augment(pixels, generator, flip)
    mixed, own, pasted, share = cutmix(views, labels, generator)
    logits = network(mixed)
    return share * cross_entropy(logits, own) + (1 - share) * cross_entropy(logits, pasted)


@torch.inference_mode()
def _accuracy(network: nn.Module, val: Split) -> tuple[float, float]:
    """Top-1 and top-5 (top-k of fewer classes) accuracy as fractions of 1."""
    logits = torch.cat([network(normalise(pixels)) for pixels in torch.split(val[0], _VAL_BATCH)])
    ranked = logits.topk(min(5, logits.shape[1])).indices
    hits = (ranked == val[1][:, None]).double()
    return float(hits[:, 0].mean()), float(hits.sum(1).mean())


def _to_device(split: LabelledImages, device: str) -> Split:
    # A copy even on the CPU: arrays from a shared store are read-only, which torch does not support.
    return torch.tensor(split.pixels, device=device), torch.tensor(split.labels, device=device)


def _seed(trial: Trial, what: str) -> int:
    return seed_for(trial.seed, "evaluate", trial.trial_id, what)


def _check(split: LabelledImages, what: str, input_size: int, class_names: Sequence[str]) -> None:
    if not len(split.labels):
        raise ValueError(f"evaluate: the {what} set has no images")
    if split.pixels.shape[1:] != (3, input_size, input_size):
        raise ValueError(
            f"evaluate: the {what} images are {split.pixels.shape[1:]}, not (3, {input_size}, {input_size}); "
            "prepare them with evaluate.input_size"
        )
    outside = set(np.unique(split.labels).tolist()) - set(range(len(class_names)))
    if outside:
        raise ValueError(f"evaluate: the {what} set has labels {sorted(outside)}, but {len(class_names)} class names")
