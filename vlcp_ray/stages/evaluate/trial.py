"""Train a classifier from scratch on a set of labelled images, and test it on real ones."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from vlcp_ray.models.batches import naming_memory_fix
from vlcp_ray.models.classifiers import InBfloat16, build_classifier, global_seed
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.protocols.labelled_images import LabelledImages, Split, check_split, to_device
from vlcp_ray.protocols.metrics import accuracy, batches_for, confusion_matrix, guesses, predict
from vlcp_ray.protocols.training import Epoch
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.evaluate import OWN_LABELS, Evaluate, Trial

#: With more classes than this the confusion matrix is not kept: for 1,000 it has a million entries.
_MAX_CONFUSION_CLASSES: Final = 100
_FLOAT_BYTES: Final = 4  # of a number of a soft label, as exports have them
_TOO_LITTLE_MEMORY: Final = (
    "evaluate: a training of {} does not fit into its share of the GPU's memory; give the pool evaluate a larger one "
    "(num_gpus in the scale file), or lower evaluate.batch_size and rded_batch_size"
)


def run_trial(
    train: LabelledImages,
    val: LabelledImages,
    class_names: Sequence[str],
    settings: Evaluate,
    trial: Trial,
    device: str,
    teacher: nn.Module | None = None,
    teacher_name: str = "",
) -> dict[str, Any]:
    """Train a classifier on `train`, test it on `val` as the protocol prescribes, and return a row of SCORES.

    The row depends on the images, their order, the settings, the trial and the teacher; on one machine all of it but
    `seconds` is reproducible, whatever ran before in the process. Global random state is neither used nor changed.

    Args:
        train: the training set, with pixels of (settings.input_size)^2; its own soft labels, if any, take the place of
            the teacher's where a protocol stores one for each image.
        val: real images of the same size.
        class_names: the class of each label.
        settings: of the trainings.
        trial: protocol and network; its id is a key of every random seed.
        device: torch device.
        teacher: for a protocol with soft labels: it has an output for every class name, in their order, and is moved to
            the device.
        teacher_name: for the row: its network and training.

    Raises:
        ValueError: a set is empty, has images of another size, or labels without a class name; or the protocol needs a
            teacher and there is none, or one with another number of outputs; or the GPU has too little memory.
    """
    started, classes = time.perf_counter(), len(class_names)
    for split, name in ((train, "train"), (val, "val")):
        check_split(split, f"evaluate: the {name} set", settings.input_size, class_names)
    protocol, epochs = PROTOCOLS[trial.protocol], trial.count_epochs(settings, classes)
    own = train.soft if protocol.labels == "stored" else None
    network = build_classifier(
        trial.network,
        num_classes=classes,
        input_size=settings.input_size,
        width=settings.width,
        seed=_seed(trial, "weights"),
        norm=protocol.norm,
    )
    with (
        naming_memory_fix(_TOO_LITTLE_MEMORY.format(trial.network)),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        global_seed(_seed(trial, "dropout"), device),
    ):
        network, on_train = network.to(device), to_device(train, device)
        needs_teacher = protocol.needs_teacher and own is None
        checked = _check_teacher(teacher, trial.protocol, on_train, classes, device) if needs_teacher else None
        if settings.precision == "bf16":
            _check_bfloat16(device)
            network, checked = InBfloat16(network), checked and InBfloat16(checked)
        trained_epochs = protocol.train(
            network,
            on_train,
            settings,
            epochs=epochs,
            seed=_seed(trial, "steps"),
            name=trial.network,
            ipc=trial.ipc,
            num_classes=classes,
            teacher=checked,
            augment=trial.augmented,
            **({} if own is None else {"stored": own}),
        )
        should_validate = partial(protocol.should_validate, epochs=epochs, validations=settings.validations)
        results = _train_and_validate(network, trained_epochs, train, val, device, classes, should_validate)
    return {
        "trial_id": trial.trial_id,
        "protocol": trial.protocol,
        "network": trial.network,
        "method": trial.method,
        "ipc": trial.ipc,
        "seed": trial.seed,
        "repeat": trial.repeat,
        "augmented": trial.augmented,
        "epochs": epochs,
        "steps": epochs * protocol.steps_per_epoch(settings, trial.network, trial.ipc, classes, len(train.labels)),
        "batch_size": protocol.batch_size(settings, trial.ipc, classes, len(train.labels)),
        "labels": protocol.labels,
        "teacher": OWN_LABELS if own is not None else teacher_name if protocol.needs_teacher else "",
        "image_bytes": train.file_bytes,
        "label_bytes": len(train.labels) * classes * _FLOAT_BYTES if protocol.labels == "stored" else 0,
        "teacher_bytes": _weight_bytes(teacher) if teacher and protocol.labels == "teacher" else 0,
        "seconds": time.perf_counter() - started,
        **results,
    }


def _train_and_validate(
    network: nn.Module,
    trained_epochs: Iterator[Epoch],
    train: LabelledImages,
    val: LabelledImages,
    device: str,
    classes: int,
    should_validate: Callable[[int], bool],
) -> dict[str, Any]:
    """Train to the end, validate after the epochs that `should_validate` selects, and return columns of SCORES."""
    labels, train_labels = (torch.tensor(split.labels, device=device) for split in (val, train))
    accuracies, predicted, batches, loss = [], labels[:, None], batches_for(device), math.nan
    for epoch in trained_epochs:
        if should_validate(epoch.number):
            predicted, loss = predict(network, val.pixels, device, batches), float(epoch.loss)
            accuracies.append(accuracy(predicted, labels))
    counts = confusion_matrix(predicted[:, 0], labels, classes)
    on_train = predict(network, train.pixels, device, batches)
    has_guessed = guesses(on_train[:, 0], train_labels) and guesses(predicted[:, 0], labels)
    return {
        "train_top1": accuracy(on_train, train_labels)[0],
        "train_loss": loss,
        "outcome": "diverged" if not math.isfinite(loss) else "did_not_learn" if has_guessed else "",
        "top1_last": accuracies[-1][0],
        "top1_best": max(top1 for top1, _ in accuracies),
        "top5_last": accuracies[-1][1],
        "curve": [top1 for top1, _ in accuracies],
        "per_class": (counts.diagonal() / counts.sum(1).clip(min=1)).tolist(),
        "confusion": counts.flatten().tolist() if classes <= _MAX_CONFUSION_CLASSES else [],
    }


def _weight_bytes(network: nn.Module) -> int:
    return sum(value.nbytes for value in network.state_dict().values())


@torch.inference_mode()
def _check_teacher(teacher: nn.Module | None, protocol: str, train: Split, num_classes: int, device: str) -> nn.Module:
    if teacher is None:
        raise ValueError(
            f"evaluate.protocols: {protocol} needs a teacher and none was given; run the stage teach first"
        )
    teacher = teacher.to(device).eval()
    outputs = teacher(train[0][:1].float()).shape[1]
    if outputs != num_classes:
        raise ValueError(
            f"evaluate.protocols: the teacher of {protocol} has {outputs} outputs, but there are {num_classes} class "
            "names; use the weights of a teacher of these classes"
        )
    return teacher


def _check_bfloat16(device: str) -> None:
    """Refuse a GPU that only emulates bfloat16, many times slower than float32."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"evaluate.precision: {torch.cuda.get_device_name()} has no bf16; set it to float32")


def _seed(trial: Trial, purpose: str) -> int:
    return seed_for(trial.seed, "evaluate", trial.seed_key, purpose)
