"""Knows how fast devices are: what `vlcp-ray bench` measured here, or published figures with their source."""

import json
from collections.abc import Mapping
from typing import Final

from pydantic import Field

from vlcp_ray.config import Positive
from vlcp_ray.settings import Settings, build
from vlcp_ray.store import Artifact, Store

CPU: Final = "cpu"
#: Dense half-precision operations a second of the matrix units, without sparsity: NVIDIA's data sheets.
PEAKS: Final[Mapping[str, float]] = {
    "T4": 65e12,
    "V100": 125e12,
    "A10G": 70e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


class Rate(Settings):
    """How fast one worker does one kind of work, while all workers that a machine has are at it."""

    per_second: float = Field(gt=0, description="operations; of ingest images")
    start: float = Field(0.0, ge=0, description="seconds from a new process to its first batch")
    model: int | None = Field(None, description="parameters of the model it was measured on")
    images_per_second: float | None = None
    batch: Positive | None = Field(None, description="the smallest within a tenth of the fastest")
    gib: float | None = Field(None, description="the most memory that the process held")
    peak_share: float | None = None


class Overheads(Settings):
    """Seconds that Ray takes before the first row."""

    ray: float = Field(8.0, description="start it on this machine; a cluster is there already")
    plan: float = Field(3.0, description="a Ray Data plan with its actors")
    train: float = Field(10.0, description="a Ray Train group")
    task: float = Field(1.0, description="a worker for a task")


class Rates(Settings):
    """All that is known of one kind of device."""

    device: str = Field(description="cpu, or a kind of GPU by its name in `ray.util.accelerators`")
    source: str = Field(description="where the figures come from, in words")
    machine: str = ""
    measured: str = Field("", description="the day; empty: published")
    versions: Mapping[str, str] = Field(default_factory=dict)
    peak: float = Field(gt=0, description="operations a second of a large matrix product: a core's, or a GPU's")
    answer_tokens: float = Field(120.0, gt=0, description="of a description")
    overheads: Overheads = Overheads()
    rates: Mapping[str, Rate] = Field(default_factory=dict)

    def rate(self, name: str, model: int | None) -> tuple[Rate, bool]:
        """The rate of one kind of work, and whether it was measured on this very model; else a share of the peak."""
        if (found := self.rates.get(name)) and found.model == model:
            return found, True
        if name == "ingest":
            return Rate(per_second=_INGESTED), False
        share, start = (_ON_CPU if self.device == CPU else _ON_GPU)[name]
        return Rate(per_second=share * self.peak, start=start), False


#: Photographs of 0.1 megabytes that a core checks by decoding them: Pillow's 10 ms each. An assumption.
_INGESTED: Final = 100.0
#: Share of the peak, and seconds of a start, by kind of work, for a GPU that was not measured.
_ON_GPU: Final[Mapping[str, tuple[float, float]]] = {
    # 1,366 tokens/s of an 8B Llama (16 GFLOP each) in vLLM on an A40 of 150 TFLOPS: databasemart.com, vLLM A40
    # benchmark, 50 requests at once. 7B weights are read and an engine is warmed up: two minutes, an assumption.
    "caption": (0.15, 120.0),
    # 31.2 steps/s of Stable Diffusion 1.5 with guidance (2 x 0.80 TFLOP each) in diffusers with SDPA on an A100 of 312
    # TFLOPS: github.com/strint/stable-diffusion-benchmarks. The VAE and the training step are assumed to be like it.
    "generate": (0.16, 40.0),
    "decode": (0.16, 30.0),
    "encode": (0.16, 30.0),
    "finetune": (0.16, 60.0),
    "prototype": (1.0, 5.0),  # done by CPUs: see `estimate`
    "evaluate": (0.03, 15.0),  # in single precision and small batches: an assumption
}
#: The same of a core, chosen by hand so that jobs/digits.toml comes to the total of its run in README.md (two cores of
#: an AMD EPYC): that job's estimate is a fit and shows nothing. Of other jobs and of large models it is an assumption:
#: what digits-seeds and digits-compare add to earlier artifacts comes out 40 and 29 % below README's minutes.
_ON_CPU: Final[Mapping[str, tuple[float, float]]] = {
    "caption": (0.1, 10.0),
    "generate": (0.5, 6.0),
    "decode": (0.5, 5.0),
    "encode": (0.5, 6.0),
    "finetune": (0.35, 10.0),
    "prototype": (0.5, 0.0),
    "evaluate": (0.75, 5.0),
}
_CORE: Final = 60e9  # operations a second of a core with AVX2 in single precision: an assumption


def published(device: str) -> Rates:
    """What is known of a device that was never measured.

    Raises:
        ValueError: nothing is known of this GPU.
    """
    if device == CPU:
        return Rates(
            device=CPU,
            source="assumed: 60 GFLOP/s a core, shares of it fitted to one run of jobs/digits.toml",
            peak=_CORE,
        )
    if device not in PEAKS:
        raise ValueError(
            f"no rate is known of the GPU {device!r}; known: {', '.join(PEAKS)}; or measure it: vlcp-ray bench"
        )
    source = f"published: {device} {PEAKS[device] / 1e12:,.0f} TFLOPS (NVIDIA), shares of it as cost/rates.py cites"
    return Rates(device=device, source=source, peak=PEAKS[device])


def kind_of(name: str) -> str:
    """The short name of a GPU that calls itself `NVIDIA A100-SXM4-80GB`; else its own name."""
    words = name.replace("-", " ").split()
    return next((kind for kind in PEAKS if kind in words), name)


def load_rates(store: Store, device: str) -> Rates | None:
    """What `vlcp-ray bench` has left under the root for this kind of device.

    Raises:
        ConfigError: the file is not what this version writes.
    """
    content = _place(store).read_bytes(f"{device}.json")
    if content is None:
        return None
    return build(Rates, json.loads(content), f"{_place(store).path}/{device}.json")


def save_rates(store: Store, rates: Rates) -> str:
    """Write them, and say where."""
    _place(store).write_bytes(f"{rates.device}.json", rates.model_dump_json(indent=1).encode())
    return f"{_place(store).path}/{rates.device}.json"


def _place(store: Store) -> Artifact:
    return Artifact(store.filesystem, f"{store.path}/rates")
