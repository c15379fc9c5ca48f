"""Start the ranks of a distributed training on Ray Train, and run them to their end."""

from typing import Any

import ray.train.torch
from ray.train import ScalingConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from vlcp_ray.engine.cluster import joined_address
from vlcp_ray.scale import Pool


class TorchTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc] # Ray has no types here
    """Ray's trainer, which on a local Ray ends when its ranks have ended.

    Ray Train starts an actor that frees the devices of a run whose controller has died. It asks Ray's dashboard, which
    a local Ray does not have, so that the end of each training waits 12 seconds for its answer. A local Ray ends with
    its run, which frees the devices as well.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if joined_address():
            return callbacks
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def scaling_config(pool: Pool) -> ScalingConfig:
    """Return the ranks of a pool: a fixed number, or from `min_workers` to `num_workers` where the pool may grow."""
    fixed = pool.required_workers == pool.num_workers
    return ScalingConfig(
        num_workers=pool.num_workers if fixed else (pool.required_workers, pool.num_workers),
        use_gpu=pool.num_gpus > 0,
        resources_per_worker={"CPU": pool.num_cpus, **({"GPU": pool.num_gpus} if pool.num_gpus else {})},
    )
