"""Knows how a set of labelled images is judged: a classifier learns it from scratch and is tested on real images."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from vlcp_ray.config import Evaluate, Method, Network, Protocol
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.protocols import minimax, pace, rded, training
from vlcp_ray.protocols.images import LabelledImages, Split, accuracy, check, confusion, ranked, to_device
from vlcp_ray.seeds import seed_for

#: Of more classes than this the confusion matrix is not kept: 1,000 have a million entries.
_CONFUSED_CLASSES: Final = 100


@dataclass(frozen=True)
class Trial:
    """One training of one network on one set under one protocol; ipc 0 is the full train split."""

    method: Method
    protocol: Protocol
    network: Network
    ipc: int
    seed: int
    repeat: int

    @property
    def trial_id(self) -> str:
        """The trial in one word, good as a file's name: `vlcp-minimax-ipc5-seed0-ConvNet-3-r1`."""
        return f"{self.method}-{self.protocol}-ipc{self.ipc}-seed{self.seed}-{self.network}-r{self.repeat}"


def run_trial(
    train: LabelledImages,
    val: LabelledImages,
    class_names: Sequence[str],
    settings: Evaluate,
    trial: Trial,
    device: str,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """Train a classifier on `train`, check it on `val` as the protocol says, and return a row of SCORES.

    The row depends on the images, their order, the settings, the trial and the teacher; on one machine it comes out
    the same again, but for `seconds`, whatever ran before in the process. Global random state is left alone.

    Args:
        teacher: of the rded protocol, with an output for every class name, in their order; it is moved to the device.

    Raises:
        ValueError: a set is empty, has images of another size, or labels that no class name belongs to; the rded
            protocol has no teacher, or one of other classes.
    """
    started = time.perf_counter()
    for split, what in ((train, "train"), (val, "val")):
        check(split, f"evaluate: the {what} set", settings.input_size, class_names)
    network = build_classifier(
        trial.network,
        num_classes=len(class_names),
        input_size=settings.input_size,
        width=settings.width,
        seed=_seed(trial, "weights"),
        norm="instance" if trial.protocol == "minimax" else "batch",
    ).to(device)
    on_train, on_val = to_device(train, device), to_device(val, device)
    if trial.protocol == "minimax":
        epochs, is_check = pace.minimax_epochs(settings, trial.ipc, len(class_names)), training.is_check
        trained = minimax.train(network, on_train, settings, epochs, _seed(trial, "steps"))
    else:
        epochs, is_check = pace.rded_epochs(settings, trial.ipc), rded.is_check
        told_by = _ready(teacher, on_train, len(class_names), device)
        trained = rded.train(network, told_by, on_train, settings, trial.ipc, len(class_names), _seed(trial, "steps"))
    checked = partial(is_check, epochs=epochs, checks=settings.checks)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        judged = _judge(network, trained, on_val, len(class_names), checked)
    return {
        "trial_id": trial.trial_id,
        "protocol": trial.protocol,
        "network": trial.network,
        "method": trial.method,
        "ipc": trial.ipc,
        "seed": trial.seed,
        "repeat": trial.repeat,
        "epochs": epochs,
        "seconds": time.perf_counter() - started,
        **judged,
    }


def checked_epochs(protocol: Protocol, epochs: int, checks: int) -> list[int]:
    """The epochs, counted from 1, after which a trial's network is tested: those of the `curve` of SCORES."""
    is_check = training.is_check if protocol == "minimax" else rded.is_check
    return [epoch for epoch in range(1, epochs + 1) if is_check(epoch, epochs, checks)]


def _judge(
    network: nn.Module, trained: Iterator[int], val: Split, classes: int, is_check: Callable[[int], bool]
) -> dict[str, Any]:
    """Train to the end, testing where `is_check` says so, and return what the tests say."""
    checks, ranks = [], val[1][:, None]
    for epoch in trained:
        if is_check(epoch):
            ranks = ranked(network, val[0])
            checks.append(accuracy(ranks, val[1]))
    counts = confusion(ranks[:, 0], val[1], classes)
    return {
        "top1_last": checks[-1][0],
        "top1_best": max(top1 for top1, _ in checks),
        "top5_last": checks[-1][1],
        "curve": [top1 for top1, _ in checks],
        "per_class": (counts.diagonal() / counts.sum(1).clip(min=1)).tolist(),
        "confusion": counts.flatten().tolist() if classes <= _CONFUSED_CLASSES else [],
    }


@torch.inference_mode()
def _ready(teacher: nn.Module | None, train: Split, num_classes: int, device: str) -> nn.Module:
    if teacher is None:
        raise ValueError(
            "evaluate.protocols: rded learns from a teacher, and none was given; run the stage teach first"
        )
    teacher = teacher.to(device).eval()
    outputs = teacher(train[0][:1].float()).shape[1]
    if outputs != num_classes:
        raise ValueError(
            f"evaluate.protocols: the teacher of rded has {outputs} outputs, but there are {num_classes} class names; "
            "give it the weights of these classes"
        )
    return teacher


def _seed(trial: Trial, what: str) -> int:
    return seed_for(trial.seed, "evaluate", trial.trial_id, what)
