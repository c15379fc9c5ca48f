"""Knows how the teacher becomes an artifact: trained on the real images by one worker, or loaded, and tested on val."""

import os
import time
from collections.abc import Sequence
from typing import Any

import ray

from vlcp_ray import config
from vlcp_ray.filesystems import open_uri
from vlcp_ray.flow.context import Context
from vlcp_ray.flow.labelled import check_classes, check_val, load_split
from vlcp_ray.flow.tasks import task
from vlcp_ray.memory import Peaks, begin, kept_memory, peaks
from vlcp_ray.progress import say
from vlcp_ray.schemas import TEACHER
from vlcp_ray.sources.classes import expand, glossary
from vlcp_ray.store import Artifact, Step


def teach(context: Context, steps: Sequence[Step]) -> None:
    """IMAGES as the weights of a network, with the accuracy that it has on val."""
    (step,) = steps
    start, pool = time.monotonic(), context.scale.evaluate
    images = context.input(step, "images")
    manifest = context.manifest(step.inputs["images"])
    names = manifest["class_names"]
    check_classes(manifest, max(context.job.ipc))
    check_val(manifest, "teach")
    call = task(_teach, pool)
    settings = context.job.teach
    what = f"loads {settings.checkpoint}" if settings.checkpoint else f"trains {settings.epochs} epochs"
    say(step.title, f"{settings.network} {what}")
    found, most = ray.get(
        call.remote(images, context.artifact(step), settings, names, "cuda" if pool.num_gpus else "cpu")
    )
    context.view.note(most)
    say(step.title, f"top-1 on val {found['top1']:.1%}")
    context.seal(step, rows_in=1, rows=1, seconds=time.monotonic() - start, class_names=names, **found)


def _teach(
    images: Artifact, artifact: Artifact, settings: config.Teach, names: Sequence[str], device: str
) -> tuple[dict[str, Any], Peaks]:
    import torch

    begin("teach")
    threads = torch.get_num_threads()
    if device == "cpu":  # nothing else runs beside it; the cores of a machine are no setting of the run
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        with kept_memory():
            return _taught(images, artifact, settings, names, device), peaks()
    finally:
        torch.set_num_threads(threads)  # the process goes on with trials, whose sums depend on it


def _taught(
    images: Artifact, artifact: Artifact, settings: config.Teach, names: Sequence[str], device: str
) -> dict[str, Any]:
    from safetensors.torch import save

    from vlcp_ray.protocols import teacher
    from vlcp_ray.protocols.images import accuracy, ranked, to_device

    val = load_split(images, "val", settings.input_size, settings.input_size)
    if settings.checkpoint:
        state = _checkpoint(settings.checkpoint, names)
        network = teacher.load_teacher(settings, state).to(device)
        pixels, labels = to_device(val, device)
        top1, top5 = accuracy(ranked(network, pixels), labels)
        found = {"top1": top1, "top5": top5, "curve": [top1]}
    else:
        train = load_split(images, "train", settings.input_size, settings.input_size)
        taught = teacher.teach(train, val, names, settings, 0, device)
        state, found = taught.state, {"top1": taught.top1, "top5": taught.top5, "curve": list(taught.curve)}
    artifact.write_bytes(TEACHER, save({name: value.contiguous() for name, value in state.items()}))
    return found


def _checkpoint(uri: str, names: Sequence[str]) -> dict[str, Any]:
    """The weights of a file; of a network of all of ImageNet-1K the outputs of the wanted classes, by name."""
    from vlcp_ray.protocols.teacher import load_checkpoint

    filesystem, path = open_uri(uri, "teach.checkpoint")
    with filesystem.open_input_stream(path) as stream:
        content = stream.read()
    words = glossary("")
    imagenet = [words.names[key] for key in sorted(expand(["imagenet1k"], words))]  # the order of published networks
    return load_checkpoint(content, names, imagenet if set(names) < set(imagenet) else ())
