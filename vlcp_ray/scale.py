"""How much of a machine or cluster each stage takes: numbers that change the speed and never a fingerprint."""

import math
import os
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from vlcp_ray.settings import Positive, Settings, build, read_toml


class Pool(Settings):
    """A pool of actors or tasks."""

    num_workers: Positive = Field(1, description="maximum number of workers")
    min_workers: Positive | None = Field(
        None, description="workers that fine-tuning waits for, or that an actor pool starts with; none: num_workers"
    )
    num_cpus: float = Field(1.0, gt=0, description="logical CPUs of each worker")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of each worker; a fraction shares one")
    batch_size: Positive = Field(
        32, description="rows per call, per device in fine-tuning; another size may change the last bit of a result"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.required_workers > self.num_workers:
            raise ValueError(f"min_workers must be at most num_workers, {self.num_workers}, not {self.min_workers}")
        return self

    @property
    def required_workers(self) -> int:
        """Return the workers that fine-tuning waits for, or that an actor pool starts with."""
        return self.min_workers or self.num_workers

    def __str__(self) -> str:
        count = (
            f"{self.min_workers} to {self.num_workers}"
            if self.required_workers < self.num_workers
            else self.num_workers
        )
        devices = f"{self.num_cpus:g} CPU" + (f" {self.num_gpus:g} GPU" if self.num_gpus else "")
        return f"{count} x {devices}, batch {self.batch_size}"


OptimizerKind = Literal["adamw", "adamw8bit"]


class FinetunePool(Pool):
    """The ranks of fine-tuning. Of what saves memory only `adamw8bit` changes the result: the artifact records it."""

    gradient_checkpointing: bool = Field(
        True, description="recompute activations in the backward pass: less memory, a third more time"
    )
    average_on: Literal["gpu", "cpu"] = Field("gpu", description="where the moving average of the weights is kept")
    optimizer: OptimizerKind = Field(
        "adamw", description="adamw8bit: its moments in 8 bits (bitsandbytes), for GPUs of less than 16 GB"
    )
    checkpoint_minutes: float = Field(
        20.0, ge=0, description="minutes from one checkpoint to the next, which are what a lost machine costs"
    )


class Prices(Settings):
    """What the hardware costs, for the estimate of `plan`."""

    currency: str = Field("USD", description="of the prices, printed by `plan`")
    gpu_hour: float = Field(0.0, ge=0, description="one GPU with its share of the machine")
    gpu_hour_on_demand: float | None = Field(
        None, ge=0, description="the same on demand, for fine-tuning, whose machines must stay; none: gpu_hour"
    )
    cpu_hour: float = Field(0.0, ge=0, description="one CPU of a machine without GPU")
    head_hour: float = Field(0.0, ge=0, description="the machines that run all the time")


class Scale(Settings):
    """A pool of workers for each kind of work, and the size of the blocks that stream between them."""

    rows_per_block: Positive = Field(
        64, description="rows that are written at once; a crash loses at most one block for each worker"
    )
    resource_timeout: float = Field(
        1800.0, ge=0, description="seconds to wait for devices that the cluster does not have yet"
    )
    gpu: str = Field(
        "",
        description="kind of GPU, for `plan`: T4, V100, A10G, L4, L40S, A100, H100, H200, B200, RTX 3090, RTX 4090, "
        "RTX 5090, RTX A6000",
    )
    memory_of_gpu: float | None = Field(
        None, gt=0, description="GiB of the smallest GPU, as nvidia-smi has it; none: that of `gpu`, or of those found"
    )
    gpu_link: float = Field(
        12.0,
        gt=0,
        description="GB/s from a GPU to the next in a training, for `plan`: 12 over PCIe 4 (an assumption), 200 or "
        "more over NVLink, or that of the network between machines",
    )
    prices: Prices | None = Field(None, description="what the hardware costs")
    ingest: Pool = Pool()
    caption: Pool = Pool()
    encode: Pool = Pool()
    finetune: FinetunePool = FinetunePool()
    prototype: Pool = Pool()
    generate: Pool = Pool()
    evaluate: Pool = Pool()

    @model_validator(mode="before")
    @classmethod
    def _take_any_pool(cls, fields: Mapping[str, object]) -> Mapping[str, object]:
        """Let a plain `Pool` stand for one that has more settings."""
        return {name: dict(value) if isinstance(value, Pool) else value for name, value in fields.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        used = any(pool.num_gpus for pool in pools(self).values())
        if not used and (self.gpu or self.memory_of_gpu or (self.prices and self.prices.gpu_hour)):
            raise ValueError(
                "gpu, memory_of_gpu and prices.gpu_hour describe GPUs, and no pool has num_gpus; leave them out"
            )
        return self


def pools(scale: Scale) -> dict[str, Pool]:
    """Return the pools by their name."""
    return {name: pool for name, pool in scale if isinstance(pool, Pool)}


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_scale(name: str) -> Scale:
    """Read a scale file, by its path or by its name in the package; the errors are those of `load_job`."""
    return build(Scale, read_toml(name, "clusters"), name)


def derive(cpus: int, gpus: int, gpu_gib: float | None = None) -> Scale:
    """Derive the scale for what a machine or cluster has. Without a GPU the CPUs do the work.

    Batches, and what fine-tuning does to save memory, are those of Stable Diffusion 1.5 at 512 pixels. A captioner gets
    what the VAE leaves: LLaVA of 7B parameters needs a GPU of 24 GiB. Some CPUs are left for the tasks that read and
    write.

    Args:
        gpu_gib: memory of the smallest GPU; None: unknown, as small as the smallest known kind has.
    """
    if gpus == 0:
        return _on_cpus(cpus)
    gib = gpu_gib or _SMALLEST_GIB
    shared = gpus == 1  # captioning and encoding stream at the same time: on one GPU they share it
    encoders = max(1, gpus // 4)
    encoding_share = min(0.25, max(0.15, round(_SHARED_ENCODER_GIB / gib, 2))) if shared else 1.0
    per_worker = _cpus_per_worker(cpus, gpus + shared)
    usable = USABLE * gib
    return Scale(
        rows_per_block=256,
        memory_of_gpu=gpu_gib,
        ingest=Pool(num_workers=cpus),
        caption=Pool(
            num_workers=max(1, gpus - encoders),
            num_cpus=per_worker,
            num_gpus=round(1 - encoding_share, 2) if shared else 1,
            batch_size=256,
        ),
        encode=Pool(
            num_workers=encoders,
            num_cpus=per_worker,
            num_gpus=encoding_share,
            batch_size=_largest_batch(encoding_share * usable - CONTEXT_GIB - 0.16, 0.377, 32),
        ),
        finetune=_finetune_on_gpus(gpus, _cpus_per_worker(cpus, gpus), usable),
        prototype=Pool(num_workers=max(1, cpus // 4), num_cpus=min(4, cpus)),
        generate=Pool(
            num_workers=gpus,
            num_cpus=_cpus_per_worker(cpus, gpus),
            num_gpus=1,
            batch_size=_largest_batch(usable - CONTEXT_GIB - 2.0, 0.594, 32),
        ),
        evaluate=Pool(num_workers=gpus * 2, num_cpus=_cpus_per_worker(cpus, 2 * gpus), num_gpus=0.5),
    )


#: The part of the memory that the driver shows which processes can use, and the GiB of CUDA's context, workspaces and
#: gaps in each of them.
USABLE, CONTEXT_GIB = 0.98, 1.0
_SMALLEST_GIB: Final = 15.0
_SHARED_ENCODER_GIB: Final = 4.2  # of a GPU that a captioner uses, too: for batches of eight


def _cpus_per_worker(cpus: int, workers: int) -> float:
    """Divide the CPUs among workers with GPUs: at most two for each, and one to four are left for reads and writes."""
    left = max(1, min(4, cpus // 2))
    return min(2.0, max(0.25, math.floor(4 * (cpus - left) / workers) / 4))


def _largest_batch(gib: float, per_image: float, most: int) -> int:
    """Return the largest power of two whose images fit, from 1 to `most`."""
    return 1 << min(int(math.log2(max(1.0, gib / per_image))), int(math.log2(most)))


def _finetune_on_gpus(gpus: int, cpus_per_worker: float, usable: float) -> FinetunePool:
    """Choose how fine-tuning fits: what costs no time first, then activations, the average, the optimiser."""
    available = usable - CONTEXT_GIB
    options: tuple[tuple[float, float, dict[str, Any]], ...] = (
        # GiB without images, GiB of an image
        (17.9, 1.18, {"gradient_checkpointing": False}),
        (16.5, 0.27, {}),
        (13.3, 0.27, {"average_on": "cpu"}),
        (8.5, 0.27, {"average_on": "cpu", "optimizer": "adamw8bit"}),
    )
    # Four images at a time keep a GPU busy; with less memory than the last option needs, it is tried all the same.
    fixed, image, saving = next((one for one in options if one[0] + 4 * one[1] <= available), options[-1])
    batch = _largest_batch(available - fixed, image, 16)
    settings: dict[str, Any] = {"num_workers": gpus, "num_cpus": cpus_per_worker, "num_gpus": 1, "batch_size": batch}
    return FinetunePool(**settings, **saving)


def _on_cpus(cpus: int) -> Scale:
    return Scale(
        rows_per_block=128,
        ingest=Pool(num_workers=cpus),
        caption=Pool(num_workers=max(1, cpus // 16), num_cpus=min(2, cpus), batch_size=128),
        encode=Pool(num_workers=cpus, min_workers=1, num_cpus=1, batch_size=128),
        finetune=FinetunePool(num_workers=min(2, cpus), num_cpus=1, batch_size=32, gradient_checkpointing=False),
        prototype=Pool(num_workers=cpus),
        generate=Pool(num_workers=cpus, batch_size=32),
        evaluate=Pool(num_workers=cpus),
    )
