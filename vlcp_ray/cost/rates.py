"""Rates of devices: measured by `vlcp-ray bench`, or published figures with their source."""

import json
from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field

from vlcp_ray.cost.gpus import GPUS
from vlcp_ray.settings import Positive, Settings, build
from vlcp_ray.stages.stage import Work
from vlcp_ray.store.artifact import Artifact, Store

CPU: Final = "cpu"


Basis = Literal["measured", "published", "assumed"]


class Rate(Settings):
    """The speed of one worker, or of one GPU shared by several, at one kind of work on a fully used machine."""

    per_second: float = Field(gt=0, description="operations, or images where the work counts images")
    start: float = Field(0.0, ge=0, description="seconds from a new process to its first batch")
    model: int | None = Field(None, description="number that identifies the measured model (see `Work.model`)")
    images_per_second: float | None = None
    batch: Positive | None = Field(None, description="images per batch")
    images: Positive | None = Field(None, description="images of a measured call, as of a step of fine-tuning")
    gib: float | None = Field(None, description="peak memory of the process")
    peak_share: float | None = None
    basis: Basis = Field("measured", description="where it is from: a measurement here or elsewhere, or an assumption")


class Overheads(Settings):
    """Seconds that Ray takes before the first row."""

    ray: float = Field(8.0, description="start of Ray on this machine; a cluster runs already")
    plan: float = Field(3.0, description="start of a Ray Data plan with its actors")
    train: float = Field(10.0, description="start of a Ray Train group")
    task: float = Field(1.0, description="start of a worker for a task")


class Rates(Settings):
    """The rates of one kind of device."""

    device: str = Field(description="cpu, or a kind of GPU by its name in `ray.util.accelerators`")
    source: str = Field(description="where the figures come from, as `plan` prints it")
    machine: str = ""
    measured: str = Field("", description="the day; empty for published rates")
    versions: Mapping[str, str] = Field(default_factory=dict)
    peak: float = Field(gt=0, description="operations per second of a large matrix product, on one core or one GPU")
    answer_tokens: float = Field(120.0, gt=0, description="tokens of a caption")
    overheads: Overheads = Overheads()
    rates: Mapping[str, Rate] = Field(default_factory=dict)

    @property
    def bandwidth(self) -> float:
        """Return the bytes per second that a worker reads and writes in its memory, of which no rate is measured."""
        if self.device == CPU:
            return _CORE_BANDWIDTH
        return _BANDWIDTH_SHARE * (GPUS[self.device].bandwidth if self.device in GPUS else _GPU_BANDWIDTH)

    def rate(self, work: Work, model: int | None) -> Rate:
        """Return the rate of one kind of work: measured with this model, else published or assumed.

        The assumed shares of a core's peak were chosen by hand so that the estimate of jobs/digits.toml equals the
        total of one run on two cores of an AMD EPYC. That estimate is therefore a fit and confirms nothing. For other
        jobs and for large models the shares are assumptions: the estimates of what digits-seeds and digits-compare add
        to earlier artifacts are 40 % and 29 % below the measured minutes.
        """
        if (measured := self.rates.get(work.name)) and measured.model == model:
            return measured
        if work.unit == "images":
            return Rate(per_second=work.images_per_second, basis="assumed")
        share, start = work.on_cpu if self.device == CPU else work.on_gpu
        basis: Basis = "published" if work.is_published and self.device != CPU else "assumed"
        return Rate(per_second=share * self.peak, start=start, basis=basis)


# Assumptions: the part of a GPU's bandwidth that an optimiser reaches, the bandwidth of an unknown GPU, and of a core.
_BANDWIDTH_SHARE, _GPU_BANDWIDTH, _CORE_BANDWIDTH = 0.8, 500e9, 10e9
_CORE_PEAK: Final = 60e9  # operations per second of a core with AVX2 in single precision, an assumption


def published(device: str) -> Rates:
    """Return published rates of a GPU, or assumed rates of a CPU core, for a device that was not measured.

    Args:
        device: `cpu`, or the short name of a GPU.

    Raises:
        ValueError: no rate is published for this GPU.
    """
    if device == CPU:
        return Rates(
            device=CPU,
            source="assumed: 60 GFLOP/s per core, shares of it fitted to one run of jobs/digits.toml",
            peak=_CORE_PEAK,
        )
    if device not in GPUS:
        known = ", ".join(GPUS)
        raise ValueError(f"no rate is known for the GPU {device!r}; known: {known}; or measure: vlcp-ray bench")
    gpu = GPUS[device]
    source = f"published: {device} {gpu.flops / 1e12:,.0f} TFLOPS (NVIDIA), shares of it as the stages cite or assume"
    return Rates(device=device, source=source, peak=gpu.flops)


def load_rates(store: Store, device: str) -> Rates | None:
    """Read the rates of this kind of device that `vlcp-ray bench` wrote under the root; None where there are none.

    Raises:
        ConfigError: the file was written by another version.
    """
    content = _folder(store).read_bytes(f"{device}.json")
    if content is None:
        return None
    return build(Rates, json.loads(content), f"{_folder(store).path}/{device}.json")


def save_rates(store: Store, rates: Rates) -> str:
    """Write rates under the root and return their path."""
    _folder(store).write_bytes(f"{rates.device}.json", rates.model_dump_json(indent=1).encode())
    return f"{_folder(store).path}/{rates.device}.json"


def _folder(store: Store) -> Artifact:
    return Artifact(store.filesystem, f"{store.path}/rates")
