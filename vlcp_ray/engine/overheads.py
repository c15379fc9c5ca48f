"""Measure the time that Ray takes before the first row: its start, a task, a plan, a training group."""

import tempfile
import time
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.train import RunConfig

from vlcp_ray.cost.rates import Overheads
from vlcp_ray.engine.cluster import connect
from vlcp_ray.engine.ranks import TorchTrainer, scaling_config
from vlcp_ray.scale import Pool, Scale


class Identity:
    """Row-wise: return the table unchanged."""

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def measure_overheads(scale: Scale | None) -> Overheads:
    """Measure the seconds of Ray's start, and of a task, a plan and a training group without work.

    Args:
        scale: for the number of ranks; None: derived from the hardware.
    """
    start = time.monotonic()
    with connect() as derived:
        started = time.monotonic() - start
        ranks = (scale or derived).finetune
        available = int(ray.cluster_resources().get("GPU", 0) if ranks.num_gpus else ranks.required_workers)
        ranks = ranks.model_copy(
            update={"num_workers": min(ranks.required_workers, max(1, available)), "min_workers": None}
        )
        return Overheads(
            ray=started,
            task=_time(_task),
            plan=_time(_plan),
            train=_time(lambda: _train(ranks)),
        )


def _time(call: Any) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def _task() -> None:
    ray.get(ray.remote(_nothing).remote())


def _nothing(*_: object) -> None:
    pass


def _plan() -> None:
    rows = ray.data.from_arrow(pa.table({"row": list(range(64))})).repartition(target_num_rows_per_block=64)
    plan = rows.map_batches(Identity, batch_format="pyarrow", compute=ActorPoolStrategy(size=1))
    for _ in plan.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


def _train(pool: Pool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            _nothing,
            train_loop_config={},
            scaling_config=scaling_config(pool),
            run_config=RunConfig(name="overhead", storage_path=folder),
        ).fit()
