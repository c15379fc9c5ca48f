"""Knows how a run comes to its Ray: it joins the cluster it is on, or starts one on this machine."""

import logging
import os
from typing import Final

import ray

from vlcp_ray.scale import Scale, derive

#: Slots of a local Ray. They are logical: actors that mostly wait (a reader, a writer) must not keep the workers out,
#: and `scale.py` has already limited how many threads really compute.
_LOCAL_SLOTS: Final = 8


def start() -> Scale:
    """Connect to Ray and say what scale fits what it has."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray itself announces as the future default
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if _cluster_address():
        ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
        resources = ray.cluster_resources()
        cores = int(resources.get("CPU", 1))
    else:
        ray.init(
            num_cpus=max(_LOCAL_SLOTS, cores),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        resources = ray.cluster_resources()
    _quiet()
    return derive(cores, int(resources.get("GPU", 0)))


def stop() -> None:
    """Leave the cluster; a local Ray ends."""
    ray.shutdown()


def _cluster_address() -> str | None:
    return os.environ.get("RAY_ADDRESS")


def _quiet() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # `progress.py` tells the same in lines that read well in a log
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
