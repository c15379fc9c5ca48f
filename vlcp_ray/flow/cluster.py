"""Knows how a run comes to its Ray: it joins the cluster it is on, or starts one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import ray

from vlcp_ray.scale import Scale, derive

#: Slots of a local Ray. They are logical: actors that mostly wait (a reader, a writer) must not keep the workers out,
#: and `scale.py` has already limited how many threads really compute.
_LOCAL_SLOTS: Final = 8


@contextmanager
def joined() -> Iterator[Scale]:
    """Be connected to Ray: yield the scale that fits what it has, and end what was started here.

    A program that is connected already stays so. Where RAY_ADDRESS names a cluster (`ray job submit` sets it), that
    one is joined. Else a local Ray runs for as long as the work does.
    """
    if ray.is_initialized():
        yield _scale()
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        _start_local()
    try:
        yield _scale()
    finally:
        ray.shutdown()


def _start_local() -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray announces as its future default
    ray.init(
        num_cpus=max(_LOCAL_SLOTS, _cores()),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def _scale() -> Scale:
    _quiet()
    resources = ray.cluster_resources()
    local = len(ray.nodes()) == 1
    return derive(
        min(int(resources["CPU"]), _cores()) if local else int(resources["CPU"]), int(resources.get("GPU", 0))
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quiet() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # `progress.py` tells the same in lines that read well in a log
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
