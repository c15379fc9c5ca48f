"""GPUs: what NVIDIA's data sheets say of the kinds that are known, and what this machine has."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_QUERY: Final = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_SECONDS: Final = 60.0  # that a driver may take to wake up


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Args:
        flops: operations per second of its matrix units in half precision, without sparsity, added up in float32.
        gib: its memory as the driver shows it; the smaller size where a kind has two.
        bandwidth: bytes per second of its memory.
    """

    flops: float
    gib: float
    bandwidth: float


#: By the short name that a scale file gives as `gpu`.
GPUS: Final[Mapping[str, Gpu]] = {
    "T4": Gpu(65e12, 15.0, 320e9),
    "V100": Gpu(125e12, 15.8, 900e9),
    "A10G": Gpu(70e12, 22.5, 600e9),
    "L4": Gpu(121e12, 22.5, 300e9),
    "L40S": Gpu(362e12, 45.0, 864e9),
    "A100": Gpu(312e12, 39.6, 1555e9),
    "H100": Gpu(989e12, 79.6, 3350e9),
    "H200": Gpu(989e12, 140.4, 4800e9),
    "B200": Gpu(2250e12, 179.0, 8000e9),
    "RTX 3090": Gpu(71e12, 24, 936e9),
    "RTX 4090": Gpu(165e12, 24, 1008e9),
    "RTX 5090": Gpu(209e12, 31.8, 1792e9),
    "RTX A6000": Gpu(155e12, 48, 768e9),
}


def gpu_kind(name: str) -> str:
    """Return the short name of a GPU, A100 for `NVIDIA A100-SXM4-80GB`; an unknown name is returned as it is."""
    words = f" {name.replace('-', ' ')} "
    return next((kind for kind in GPUS if f" {kind} " in words), name)


def query_gpus() -> list[tuple[str, float]]:
    """Return the name and the GiB of memory of each GPU that this process may use; none without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or not (command := shutil.which("nvidia-smi")):
        return []
    query = [command, *_QUERY, *([f"--id={visible}"] if visible else [])]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.rsplit(",", 1) for line in answer.stdout.splitlines() if line.count(","))
    return [(name.strip(), float(mib) / 2**10) for name, mib in rows if mib.strip().isdigit()]
