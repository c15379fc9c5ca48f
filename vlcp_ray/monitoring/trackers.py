"""Mirror curves and images to Weights & Biases or MLflow, if they are installed."""

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
    """A run of a tracking service, which takes each record of a job once, in order; a resumed job continues its run."""

    def record(self, series: str, scalars: Scalars, images: Mapping[str, bytes]) -> None:
        """Log values by step, and PNG images of the last step."""

    def close(self) -> None:
        """Send what is buffered."""


class Wandb:
    """A run of Weights & Biases. Every series has its own step axis, as each trial or training counts its own steps."""

    def __init__(self, job: str, identity: str) -> None:
        import wandb

        self.wandb: Any = wandb
        # Without the arguments of the command, the environment and the output, in which somebody's secrets may be.
        settings = wandb.Settings(x_disable_meta=True, x_disable_machine_info=True, console="off", save_code=False)
        run = f"{job}-{identity}"
        self.run: Any = wandb.init(project=_PROJECT, name=job, id=run, resume="allow", settings=settings)

    def record(self, series: str, scalars: Scalars, images: Mapping[str, bytes]) -> None:
        step_name = f"{series}/step"
        self.run.define_metric(f"{series}/*", step_metric=step_name)
        for step, values in scalars:
            self.run.log({step_name: step} | {f"{series}/{name}": value for name, value in values.items()})
        if images:
            images_by_name = {f"{series}/{name}": self.wandb.Image(_decode(png)) for name, png in images.items()}
            self.run.log({step_name: scalars[-1][0]} | images_by_name)

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """A run of MLflow in the experiment `vlcp_ray`, at MLFLOW_TRACKING_URI."""

    def __init__(self, job: str, identity: str) -> None:
        from mlflow import MlflowClient

        self.client: Any = MlflowClient()
        experiment = self.client.get_experiment_by_name(_PROJECT)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(_PROJECT)
        tag = f"{job}-{identity}"
        runs = self.client.search_runs([experiment_id], f"tags.{_PROJECT} = '{tag}'")
        run = runs[0] if runs else self.client.create_run(experiment_id, run_name=job, tags={_PROJECT: tag})
        self.run: str = run.info.run_id
        self.client.update_run(self.run, status="RUNNING")

    def record(self, series: str, scalars: Scalars, images: Mapping[str, bytes]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(f"{series}/{name}", v, now, step) for step, values in scalars for name, v in values.items()]
        self.client.log_batch(self.run, metrics=metrics)
        for name, png in images.items():
            self.client.log_image(self.run, _decode(png), f"{series}/{name}-{scalars[-1][0]}.png")

    def close(self) -> None:
        self.client.set_terminated(self.run)


def check_installed(name: str) -> None:
    """Check that the package of a tracker is installed.

    Args:
        name: of the tracker; empty: none is used.

    Raises:
        ConfigError: it is not; the message has the command that installs it.
    """
    if name and find_spec(name) is None:
        raise ConfigError(
            f"--track {name}: the package is not installed; install the extra (pip install 'vlcp-ray[track]') or leave "
            "--track out"
        )


def open_tracker(name: str, job: str, identity: str) -> Tracker | None:
    """Open a tracker, or return None where the name is empty.

    Args:
        identity: of the job, by which a resumed job continues the run that it started.
    """
    kinds: Mapping[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}
    return kinds[name](job, identity) if name else None


def _decode(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))
