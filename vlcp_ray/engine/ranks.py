"""Start the ranks of a distributed training on Ray Train, and run them to their end."""

from typing import Any, TypeVar

import ray.train.torch
from ray.train import ScalingConfig, WorkerGroupError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision

from vlcp_ray.engine.cluster import joined_address
from vlcp_ray.scale import Pool
from vlcp_ray.store.io import StoreError

E = TypeVar("E", bound=Exception)


class TorchTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc] # Ray has no types here
    """Ray's trainer, with three differences.

    A rank that refuses its settings with a ValueError ends the training with this error: Ray would start all ranks
    again, as often as machines may be lost, and each time they would refuse again.

    On a local Ray it ends when its ranks have ended. Ray Train starts an actor that frees the devices of a run whose
    controller has died. It asks Ray's dashboard, which a local Ray does not have, so that the end of each training
    waits 12 seconds for its answer. A local Ray ends with its run, which frees the devices as well.

    Ctrl-C interrupts it, as everything else of a run. Ray would set a handler of its own, keep it after the training,
    and end the process with the exit code 0.
    """

    def fit(self) -> Any:
        """See Ray's. Raises the ValueError of a rank; that of a store once all attempts have failed."""
        try:
            return super().fit()
        except WorkerGroupError as error:
            if cause := _refusal(error) or _cause(error, StoreError):
                raise cause from error
            raise

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = _FailurePolicy(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**arguments | {"failure_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        pass

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if joined_address():
            return callbacks
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


class _FailurePolicy(DefaultFailurePolicy):  # type: ignore[misc] # Ray has no types here
    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        return (
            FailureDecision.RAISE if _refusal(training_failed_error) else super().make_decision(training_failed_error)
        )


def _refusal(error: Exception) -> ValueError | None:
    """Return the ValueError of a rank, but for that of a store, which may be there again for the next attempt."""
    cause = _cause(error, ValueError)
    return None if isinstance(cause, StoreError) else cause


def _cause(error: Exception, kind: type[E]) -> E | None:
    """Return the first error of this kind that a rank has raised."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]
    return next((cause for cause in causes if isinstance(cause, kind)), None)


def scaling_config(pool: Pool) -> ScalingConfig:
    """Return the ranks of a pool: a fixed number, or from `min_workers` to `num_workers` where the pool may grow."""
    fixed = pool.required_workers == pool.num_workers
    return ScalingConfig(
        num_workers=pool.num_workers if fixed else (pool.required_workers, pool.num_workers),
        use_gpu=pool.num_gpus > 0,
        resources_per_worker={"CPU": pool.num_cpus, **({"GPU": pool.num_gpus} if pool.num_gpus else {})},
    )
