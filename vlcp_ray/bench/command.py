"""`vlcp-ray bench`: measure Ray's overheads and each kind of work, print the rates and save them under the root."""

import tempfile
from collections.abc import Sequence, Set
from pathlib import Path

from vlcp_ray.bench.run import measured, wanted
from vlcp_ray.config import Job
from vlcp_ray.cost.rates import CPU, Rate, Rates, load_rates, save_rates
from vlcp_ray.cost.table import this_machine
from vlcp_ray.engine.overheads import measure_overheads
from vlcp_ray.methods import METHODS
from vlcp_ray.models.architectures import name_of
from vlcp_ray.models.pretrained import count_parameters
from vlcp_ray.scale import Scale, count_cores, pools
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import works
from vlcp_ray.stages.pair import CAPTION
from vlcp_ray.stages.stage import Work
from vlcp_ray.store.artifact import Store


def bench(
    job: Job, store: Store, stages: Set[str], scale: Scale | None, only: Sequence[str] | None, random: bool
) -> int:
    """Measure, print a line for each kind of work, and save the rates under the root, where `plan` reads them.

    Args:
        job: its models and settings.
        store: the root.
        stages: the names of the stages in the job's graph.
        scale: pools of workers, by default those that are derived for this machine.
        only: names of kinds of work; the others keep the rates that an earlier call saved.
        random: use random weights of the paper's sizes instead of the job's models.

    Returns:
        The exit code, 0.
    """
    scale = scale or this_machine()[0]
    device = _device(scale)
    with tempfile.TemporaryDirectory() as folder:
        if random:
            job = _with_random_models(job, Path(folder), device)
        print(f"{'bench':<12} {'images/s':>10} {'GFLOP/s':>10} {'of peak':>8} {'start':>8} {'memory':>10}", flush=True)
        overheads = measure_overheads(scale)
        ranks = f"ranks {overheads.train:.1f}, task {overheads.task:.1f}"
        print(f"{'Ray':<12} start {overheads.ray:.1f} s, plan {overheads.plan:.1f}, {ranks}", flush=True)
        by_name = works()
        chosen = [by_name[name] for name in only] if only else wanted(job, stages)
        for name, result in measured(job, scale, chosen, overheads, device, count_cores()):
            if result is None:
                print(f"{name:<12} unknown: the operations of its model were never counted", flush=True)
            elif isinstance(result, Rate):
                print(_format(by_name[name], result), flush=True)
            else:
                earlier = load_rates(store, name) if only else None
                rates = _merge(result, earlier) if earlier else result
                path = save_rates(store, rates)
                print(f"{'':<12} peak {rates.peak / 1e9:,.0f} GFLOP/s per core or GPU; saved to {path}")
    return 0


def _merge(new: Rates, earlier: Rates) -> Rates:
    """Merge new rates with those that an earlier call saved."""
    tokens = (new if CAPTION.name in new.rates else earlier).answer_tokens
    return new.model_copy(update={"rates": {**earlier.rates, **new.rates}, "answer_tokens": tokens})


def _device(scale: Scale) -> str:
    """Return `cpu`, or torch's name of the GPU where a pool has GPUs."""
    if not any(pool.num_gpus for pool in pools(scale).values()):
        return CPU
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "--scale: its pools have GPUs, but this machine has none; leave --scale out, or run bench on a GPU machine"
        )
    return torch.cuda.get_device_name()


def _with_random_models(job: Job, folder: Path, device: str) -> Job:
    from vlcp_ray.bench.random_models import dit, llava, stable_diffusion

    captioner = llava("real", folder, device=CPU if device == CPU else "cuda")
    caption = job.caption.model_copy(update={"model": captioner})
    compare = job.compare
    if any(METHODS[name].tuning for name in compare.methods):
        minimax = compare.minimax.model_copy(update={"model": dit("real", folder)})
        compare = compare.model_copy(update={"minimax": minimax})
    name = name_of(count_parameters(job.base_model, "unet"))
    models = {"base_model": stable_diffusion("real", folder, name=name), "caption": caption, "compare": compare}
    return job.model_copy(update=models)


def _format(work: Work, rate: Rate) -> str:
    share = "" if rate.peak_share is None else f"{rate.peak_share:.1%}"
    flops = "" if work.unit == "images" else f"{rate.per_second / 1e9:,.1f}"
    images = f"{rate.images_per_second or 0:,.1f}"
    return f"{work.name:<12} {images:>10} {flops:>10} {share:>8} {rate.start:>6.1f} s {rate.gib or 0:>6.2f} GiB"
