"""Knows how `vlcp-ray bench` goes: what Ray takes before the first row, then each kind of work, told and kept."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
from ray.data import ActorPoolStrategy
from ray.train import RunConfig, ScalingConfig

from vlcp_ray.bench.run import measured, wanted
from vlcp_ray.config import Job
from vlcp_ray.cost.rates import CPU, Overheads, Rate, Rates, load_rates, save_rates
from vlcp_ray.cost.table import cores, this_machine
from vlcp_ray.flow import cluster
from vlcp_ray.scale import Scale, pools
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import Store


class Nothing:
    """A stage that loads nothing and changes nothing."""

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def bench(
    job: Job, store: Store, stages: set[str], scale: Scale | None, only: Sequence[str] | None, random: bool
) -> int:
    """Measure, print a line a kind of work, and leave the rates under the root, where `plan` finds them.

    Args:
        only: kinds of work; the others keep the rates that an earlier call has left.
        random: with random weights of the paper's sizes instead of the job's models.
    """
    scale = scale or this_machine()[0]
    device = _device(scale)
    with tempfile.TemporaryDirectory() as folder:
        if random:
            job = _randomly(job, Path(folder), device)
        print(f"{'bench':<12} {'images/s':>10} {'GFLOP/s':>10} {'of peak':>8} {'start':>8} {'memory':>10}", flush=True)
        found = overheads(scale)
        ranks = f"ranks {found.train:.1f}, task {found.task:.1f}"
        print(f"{'Ray':<12} start {found.ray:.1f} s, plan {found.plan:.1f}, {ranks}", flush=True)
        works = list(only or wanted(job, stages))
        for name, rate in measured(job, scale, works, found, device, cores()):
            if rate is None:
                print(f"{name:<12} unknown: the operations of its model were never counted", flush=True)
            elif isinstance(rate, Rate):
                print(_told(name, rate), flush=True)
            else:
                before = load_rates(store, name) if only else None
                if before:
                    rate = _beside(rate, before)
                kept = save_rates(store, rate)
                print(f"{'':<12} a core's or GPU's peak {rate.peak / 1e9:,.0f} GFLOP/s; kept in {kept}")
    return 0


def _beside(new: Rates, before: Rates) -> Rates:
    """Some new rates among those that an earlier call has left."""
    tokens = (new if "caption" in new.rates else before).answer_tokens
    return new.model_copy(update={"rates": {**before.rates, **new.rates}, "answer_tokens": tokens})


def _device(scale: Scale) -> str:
    if not any(pool.num_gpus for pool in pools(scale).values()):
        return CPU
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("--scale: its pools have GPUs and this machine has none; leave it out, or run bench there")
    return torch.cuda.get_device_name()


def _randomly(job: Job, folder: Path, device: str) -> Job:
    from vlcp_ray.bench.random_models import llava, stable_diffusion

    captioner = llava("real", folder, device=CPU if device == CPU else "cuda")
    caption = job.caption.model_copy(update={"model": captioner})
    return job.model_copy(update={"base_model": stable_diffusion("real", folder), "caption": caption})


def _told(name: str, rate: Rate) -> str:
    share = "" if rate.peak_share is None else f"{rate.peak_share:.1%}"
    flops = "" if name == "ingest" else f"{rate.per_second / 1e9:,.1f}"
    images = f"{rate.images_per_second or 0:,.1f}"
    return f"{name:<12} {images:>10} {flops:>10} {share:>8} {rate.start:>6.1f} s {rate.gib or 0:>6.2f} GiB"


def overheads(scale: Scale | None) -> Overheads:
    """Seconds of each, measured with stages that do nothing, with as many ranks as fine-tuning has."""
    start = time.monotonic()
    with cluster.joined() as derived:
        started = time.monotonic() - start
        ranks = (scale or derived).finetune
        there = int(ray.cluster_resources().get("GPU", 0) if ranks.num_gpus else ranks.fewest)
        ranks = ranks.model_copy(update={"num_workers": min(ranks.fewest, max(1, there)), "min_workers": None})
        return Overheads(ray=started, task=_timed(_task), plan=_timed(_plan), train=_timed(lambda: _train(ranks)))


def _timed(call: Any) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def _task() -> None:
    ray.get(ray.remote(_nothing).remote())


def _nothing(*_: object) -> None:
    pass


def _plan() -> None:
    rows = ray.data.from_arrow(pa.table({"row": list(range(64))})).repartition(target_num_rows_per_block=64)
    plan = rows.map_batches(Nothing, batch_format="pyarrow", compute=ActorPoolStrategy(size=1))
    for _ in plan.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


def _train(pool: Any) -> None:
    gpus = {"GPU": pool.num_gpus} if pool.num_gpus else {}
    with tempfile.TemporaryDirectory() as folder:
        ray.train.torch.TorchTrainer(
            _nothing,
            train_loop_config={},
            scaling_config=ScalingConfig(
                num_workers=pool.fewest,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": pool.num_cpus, **gpus},
            ),
            run_config=RunConfig(name="overhead", storage_path=folder),
        ).fit()
