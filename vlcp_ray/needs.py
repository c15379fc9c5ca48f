"""Knows what a job needs before anything is read: images, disk at the root, GPU memory; computed from its settings."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vlcp_ray.config import Expect, Job
from vlcp_ray.demo import digits
from vlcp_ray.models.folders import folder
from vlcp_ray.models.shapes import is_local, latent_shape
from vlcp_ray.store import Step

_GIB: Final = 2**30
_CAPTION_BYTES: Final = 600
_PNG: Final = 0.7  # share of its raw bytes that a small photograph keeps
#: Parameters of the paper's models, as their files on the hub have them.
_PARAMETERS: Final[Mapping[tuple[str, str], int]] = {
    ("llava-hf/llava-1.5-7b-hf", ""): 7_063_427_072,
    ("benjamin-paine/stable-diffusion-v1-5", "unet"): 859_520_964,
    ("benjamin-paine/stable-diffusion-v1-5", "vae"): 83_653_863,
    ("benjamin-paine/stable-diffusion-v1-5", "text_encoder"): 123_060_480,
}
_HALF, _FULL = 2, 4  # bytes of a parameter in half and in full precision
_SETS: Final = ("generate", "select")  # the stages that make distilled sets
_TRAINED: Final = 5 * _FULL  # weight, gradient, two moments of Adam, moving average


@dataclass(frozen=True)
class Needs:
    """What a job needs; None where it cannot be known before the image set or the model is there."""

    images: Expect | None
    sets: int
    drawn: int
    disk: Mapping[str, float]
    gpu: Mapping[str, float | None]

    def lines(self) -> Iterator[str]:
        """A line a need, for people."""
        if self.images is None:
            yield "images      known after ingest"
        else:
            n = self.images
            yield f"images      {n.train:,} train + {n.val:,} val, {n.classes:,} classes, {_told(n.gib)}"
            yield f"distilled   {self.drawn:,} images in {self.sets} sets"
            parts = ", ".join(f"{name} {_told(gib)}" for name, gib in self.disk.items())
            yield f"disk        {_told(sum(self.disk.values()))} at the root: {parts}"
        memory = (f"{name} {'unknown' if gib is None else _told(gib)}" for name, gib in self.gpu.items())
        if self.gpu:
            yield f"GPU memory  {', '.join(memory)}, and what a batch needs"


def needs(job: Job, steps: Sequence[Step]) -> Needs:
    """What a job needs.

    Args:
        steps: its graph: where no set is drawn, no diffusion model is loaded, and every set is counted, whatever its
            method.
    """
    stages = {step.stage for step in steps}
    sets = [step for step in steps if step.stage in _SETS]
    images = job.ingest.expect or _embedded(job)
    sizes = {part: parameters(job.base_model, part) for part in ("unet", "vae", "text_encoder")}
    whole = None if None in sizes.values() else sum(size or 0 for size in sizes.values())
    memory = {
        "describe": ("pair", _gib(parameters(job.caption.model, ""), _HALF)),
        "fine-tune": ("finetune", _gib(sizes["unet"], _TRAINED)),
        "generate": ("generate", _gib(whole, _HALF)),
    }
    return Needs(
        images,
        sets=len(sets),
        drawn=distilled_images(sets, images.classes) if images else 0,
        disk=_disk(job, images, whole, steps) if images else {},
        gpu={name: gib for name, (stage, gib) in memory.items() if stage in stages},
    )


def distilled_images(sets: Sequence[Step], classes: int) -> int:
    """Images in the distilled sets that these steps make."""
    return sum(step.key["ipc"] for step in sets) * classes


def distilled_gib(job: Job, images: int) -> float:
    """GiB of so many images of the size that is generated."""
    return images * 3 * job.generate.image_size**2 * _PNG / _GIB


def parameters(model: str, part: str) -> int | None:
    """How many parameters a model or one of its parts has; None for a hub model that is not known here."""
    path = Path(folder(model)).expanduser() / part
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if files:
        return sum(map(_parameters_in, files))
    return _PARAMETERS.get((model, part))


def _parameters_in(file: Path) -> int:
    with file.open("rb") as stream:  # a length of 8 bytes, then a JSON that says where each tensor lies
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(_product(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _product(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _disk(job: Job, images: Expect, model: int | None, steps: Sequence[Step]) -> dict[str, float]:
    stages = {step.stage for step in steps}
    channels, height, width = latent(job, job.encode.resolution)
    views = 1 + job.finetune.random_flip
    moments = views * 2 * _product(latent(job, job.encode.train_resolution))  # mean and logvar of each
    row = _HALF * (channels * height * width + moments) + _CAPTION_BYTES
    found = {"images": images.gib}
    if "pair" in stages:
        found["pairs"] = images.train * row / _GIB
    if model is not None and "finetune" in stages:
        found["models"] = len(job.seeds) * model * _FULL / _GIB
    sets = [step for step in steps if step.stage in _SETS]
    found["distilled"] = distilled_gib(job, distilled_images(sets, images.classes))
    return found


def latent(job: Job, resolution: int) -> tuple[int, int, int]:
    """The shape (c, h, w) of a latent, without a look at the hub."""
    if is_local(job.base_model):
        return latent_shape(job.base_model, resolution)
    return 4, resolution // 8, resolution // 8  # every Stable Diffusion on the hub


def _embedded(job: Job) -> Expect | None:
    if job.ingest.source != "digits":
        return None
    classes, mean_bytes = len(digits.CLASS_NAMES), 900
    train, val = digits.TRAIN_IMAGES, digits.VAL_IMAGES
    return Expect(classes=classes, train=train, val=val, gib=(train + val) * mean_bytes / _GIB)


def _told(gib: float) -> str:
    return f"{gib:,.1f} GiB" if gib >= 0.1 else f"{gib * 2**10:,.1f} MiB"


def _gib(parameters: int | None, bytes_each: int) -> float | None:
    return None if parameters is None else parameters * bytes_each / _GIB
