"""Knows the trackers that a run can mirror its curves and pictures to: Weights & Biases and MLflow, where installed."""

import io
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, Protocol

from PIL import Image

from vlcp_ray.settings import ConfigError

NAMES: Final = ("wandb", "mlflow")
_PROJECT: Final = "vlcp_ray"

Scalars = Sequence[tuple[int, Mapping[str, float]]]  # (step, values by name)


class Tracker(Protocol):
    """Takes the records of a job, each once, in the order in which they are made; a resumed job goes on in its run."""

    def keep(self, series: str, scalars: Scalars, images: Mapping[str, bytes]) -> None:
        """Values by step, and PNG pictures of the last step."""

    def close(self) -> None:
        """Send what is left."""


class Wandb:
    """A run of Weights & Biases; every series has steps of its own, as trials and trainings lie side by side."""

    def __init__(self, job: str, identity: str) -> None:
        import wandb

        self.wandb: Any = wandb
        self.run: Any = wandb.init(project=_PROJECT, name=job, id=f"{job}-{identity}", resume="allow")

    def keep(self, series: str, scalars: Scalars, images: Mapping[str, bytes]) -> None:
        step_name = f"{series}/step"
        self.run.define_metric(f"{series}/*", step_metric=step_name)
        for step, values in scalars:
            self.run.log({step_name: step} | {f"{series}/{name}": value for name, value in values.items()})
        if images:
            drawn = {f"{series}/{name}": self.wandb.Image(_opened(png)) for name, png in images.items()}
            self.run.log({step_name: scalars[-1][0]} | drawn)

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """A run of MLflow in the experiment `vlcp_ray`, where MLFLOW_TRACKING_URI says."""

    def __init__(self, job: str, identity: str) -> None:
        from mlflow import MlflowClient

        self.client: Any = MlflowClient()
        found = self.client.get_experiment_by_name(_PROJECT)
        place = found.experiment_id if found else self.client.create_experiment(_PROJECT)
        runs = self.client.search_runs([place], f"tags.{_PROJECT} = '{job}-{identity}'")
        run = runs[0] if runs else self.client.create_run(place, run_name=job, tags={_PROJECT: f"{job}-{identity}"})
        self.run: str = run.info.run_id
        self.client.update_run(self.run, status="RUNNING")

    def keep(self, series: str, scalars: Scalars, images: Mapping[str, bytes]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(f"{series}/{name}", v, now, step) for step, values in scalars for name, v in values.items()]
        self.client.log_batch(self.run, metrics=metrics)
        for name, png in images.items():
            self.client.log_image(self.run, _opened(png), f"{series}/{name}-{scalars[-1][0]}.png")

    def close(self) -> None:
        self.client.set_terminated(self.run)


def check(name: str) -> None:
    """Refuse a tracker whose package is not here.

    Raises:
        ConfigError: says how to install it.
    """
    if name and find_spec(name) is None:
        raise ConfigError(f"--track {name}: the package is not installed; pip install {name}, or leave --track out")


def opened(name: str, job: str, identity: str) -> Tracker | None:
    """The tracker of this name; the identity makes a resumed job go on in the run that it began."""
    kinds: Mapping[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}
    return kinds[name](job, identity) if name else None


def _opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))
