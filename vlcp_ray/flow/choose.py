"""Knows how real images are chosen class by class with the eyes of the teacher: Herding, K-Center, RDED."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray

from vlcp_ray import config
from vlcp_ray.flow.classes import Rows, class_file, classes_done, each_class
from vlcp_ray.flow.context import Context
from vlcp_ray.schemas import SYNTHETIC, TEACHER
from vlcp_ray.store import Artifact, Step

_COLUMNS: Final = ("image_id", "label", "class_name", "split", "image", "source")


@dataclass(frozen=True)
class Chooser:
    """All chosen sets of one class from one look at its images; each set's file is written by the worker itself."""

    settings: config.Teach
    state: Any  # a reference to the teacher's weights, which travel once a node
    image_size: int
    factor: int
    runs: Mapping[tuple[str, int, int], Artifact]  # method, seed, ipc
    device: str

    def __call__(self, rows: pa.Table) -> None:
        # Here, as it loads torch: the driver that imports this file has no use for it.
        from vlcp_ray.stages.choose import Choose

        stage = Choose(self.settings, ray.get(self.state), self.image_size, self.factor, self.device)
        for (method, seed, ipc), made in stage(rows, list(self.runs)).items():
            self.runs[method, seed, ipc].write_table(f"synthetic/{class_file(rows)}", made)


def choose(context: Context, steps: Sequence[Step]) -> None:
    """IMAGES(train) as SYNTHETIC, chosen by methods that look through the teacher."""
    start, images = time.monotonic(), steps[0].inputs["images"]
    runs = {(s.key["method"], s.key["seed"], s.key["ipc"]): context.artifact(s) for s in steps}
    state = context.artifact(steps[0].inputs["teacher"]).read_bytes(TEACHER)
    job, rows = context.job, Rows(context.artifact(images), "images", _COLUMNS, {"split": "train"})
    device = "cuda" if context.scale.evaluate.num_gpus else "cpu"
    work = Chooser(job.teach, ray.put(state), job.generate.image_size, job.evaluate.factor, runs, device)
    labels, done = rows.labels(), classes_done(list(runs.values()), "synthetic")
    left = [label for label in labels if label not in done]
    with context.progress(steps, len(labels), "classes", len(labels) - len(left)) as progress:
        for peaks in each_class(rows, int(context.manifest(images)["rows"]), left, work, context.scale.evaluate):
            progress.add(1, peaks=peaks)
    seconds = (time.monotonic() - start) / len(steps)
    for step in steps:
        made = len(context.artifact(step).table("synthetic", SYNTHETIC, ["image_id"]))
        rows_in = step.key["ipc"] * int(np.count_nonzero(context.manifest(images)["train"]))
        context.seal(step, rows_in=rows_in, rows=made, seconds=seconds)
