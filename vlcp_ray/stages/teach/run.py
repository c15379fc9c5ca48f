"""teach: train the teacher on one worker, or load it from a checkpoint, and test it on val."""

import time
from collections.abc import Sequence
from typing import Any, Final

from vlcp_ray.engine.context import Context
from vlcp_ray.engine.tasks import result, task
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.monitoring.progress import log_line
from vlcp_ray.scale import count_cores
from vlcp_ray.sources.classes import expand, load_glossary
from vlcp_ray.stages.teach import STAGE, TORCHVISION, WEIGHTS, Teach
from vlcp_ray.store.artifact import Artifact, Step
from vlcp_ray.store.files import read
from vlcp_ray.store.io import open_uri, retry

_TOO_LITTLE_MEMORY: Final = (
    "teach.batch_size: the training does not fit into the memory of the GPU; lower it, or give the pool evaluate a "
    "larger share of a GPU (num_gpus in the scale file)"
)


def run(context: Context, steps: Sequence[Step]) -> None:
    """Write the weights of each teacher for IMAGES, with its accuracy on val in the manifest."""
    for step in steps:
        _make(context, step)


def _make(context: Context, step: Step) -> None:
    start, pool, settings = time.monotonic(), context.scale.evaluate, context.job.teach.of(step.settings["network"])
    images, manifest = context.input(step, "images"), context.manifest(step.inputs["images"])
    class_names = manifest["class_names"]
    action = f"load {settings.checkpoint}" if settings.checkpoint else f"train for {settings.epochs} epochs"
    log_line(step.title, f"{settings.name}: {action}")
    device = "cuda" if pool.num_gpus else "cpu"
    worker = task(_train_or_load_on_all_cores, pool)
    metrics, peaks = result(worker.remote(images, context.artifact(step), settings, class_names, device))
    context.view.record_peaks(peaks)
    log_line(step.title, f"top-1 on val {metrics['top1']:.1%}")
    one = pool.model_copy(update={"num_workers": 1, "min_workers": None})
    used = {STAGE.pools[0]: one if pool.num_gpus else pool}  # without a GPU it takes all cores, as the whole pool does
    facts = metrics | {"class_names": class_names}
    context.complete(step, rows_in=1, rows=1, seconds=time.monotonic() - start, pools=used, **facts)


def _train_or_load_on_all_cores(
    images: Artifact, artifact: Artifact, settings: Teach, class_names: Sequence[str], device: str
) -> tuple[dict[str, Any], Peaks]:
    """Write the weights; return the metrics and the peaks of memory. On a CPU all its cores are used."""
    import torch

    reset_peaks(STAGE.name)
    threads = torch.get_num_threads()
    if device == "cpu":  # no other task runs at the same time
        torch.set_num_threads(count_cores())
    try:
        with memory_retained():
            return _train_or_load(images, artifact, settings, class_names, device), measure_peaks()
    finally:
        torch.set_num_threads(threads)  # trials run next here; their results depend on it


def _train_or_load(
    images: Artifact, artifact: Artifact, settings: Teach, class_names: Sequence[str], device: str
) -> dict[str, Any]:
    """Write the weights and return the metrics on val: top1, top5 and the curve; also top1 on the training images.

    Raises:
        ValueError: the teacher guesses, so that its soft labels would say nothing.
    """
    import torch
    from safetensors.torch import save

    from vlcp_ray.models.batches import naming_memory_fix
    from vlcp_ray.models.teacher import load_teacher
    from vlcp_ray.protocols.labelled_images import load_split
    from vlcp_ray.protocols.metrics import accuracy, guesses, predict
    from vlcp_ray.stages.teach.train import train_teacher

    size, threads = settings.input_size, count_cores()
    val = load_split(images, "val", size, size, threads)
    if settings.checkpoint:
        state = _read_checkpoint(settings, class_names)
        predicted = predict(load_teacher(settings, state).to(device), val.pixels, device)
        labels = torch.tensor(val.labels, device=device)
        top1, top5 = accuracy(predicted, labels)
        if guesses(predicted[:, 0], labels):
            raise ValueError(
                f"teach.checkpoint: top-1 on val is {top1:.1%}, as by guessing among {len(class_names)} classes; check "
                "that the weights are of these classes, in the order of their names"
            )
        metrics: dict[str, Any] = {"top1": top1, "top5": top5, "curve": [top1]}
    else:
        train = load_split(images, "train", size, size, threads)
        with naming_memory_fix(_TOO_LITTLE_MEMORY):
            trained = train_teacher(train, val, class_names, settings, 0, device)
        state, metrics = trained.state, {"top1": trained.top1, "top5": trained.top5, "curve": list(trained.curve)}
        metrics["train_top1"] = trained.train_top1
    artifact.write_bytes(WEIGHTS, save({name: value.contiguous() for name, value in state.items()}))
    return metrics


def _read_checkpoint(settings: Teach, class_names: Sequence[str]) -> dict[str, Any]:
    """Read the weights of a file, or torchvision's, with the outputs of the job's classes.

    If these are part of ImageNet-1K, a network of all its 1,000 classes can be read, too.
    """
    from vlcp_ray.stages.teach.checkpoint import load_checkpoint, load_published

    known, uri = load_glossary(""), settings.checkpoint
    imagenet = [known.names[key] for key in sorted(expand(["imagenet1k"], known))]  # the order of published networks
    if uri == TORCHVISION:
        return load_published(settings.name, class_names, imagenet)
    filesystem, path = open_uri(uri, "teach.checkpoint")
    content = retry(lambda: read(filesystem, path), f"read {uri}")
    return load_checkpoint(content, class_names, imagenet if set(class_names) < set(imagenet) else ())
