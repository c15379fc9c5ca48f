"""rank: train the early networks, each on a worker, and write the rows of each to a file of DIFFICULTY."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from vlcp_ray.engine.by_part import PartFiles, run_parts
from vlcp_ray.engine.context import Context
from vlcp_ray.models.batches import naming_memory_fix
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.protocols.labelled_images import load_split
from vlcp_ray.scale import count_cores
from vlcp_ray.schemas import IMAGES
from vlcp_ray.stages.rank import STAGE, Rank
from vlcp_ray.stages.rank.difficulty import measure_difficulty
from vlcp_ray.stages.teach import Teach
from vlcp_ray.store.artifact import Artifact, Step

_TOO_LITTLE_MEMORY = (
    "rank: a training with teach.batch_size does not fit into a worker's share of the GPU's memory; lower it, or give "
    "the pool evaluate a larger one (num_gpus in the scale file)"
)


def run(context: Context, steps: Sequence[Step]) -> None:
    """Write DIFFICULTY, a file for each network."""
    (step,) = steps
    pool, settings = context.scale.evaluate, context.job.rank
    class_names = context.manifest(step.inputs["images"])["class_names"]
    device = "cuda" if pool.num_gpus else "cpu"
    task = RankTask(
        context.input(step, "images"),
        context.artifact(step),
        context.job.teach.teachers()[0],
        settings,
        class_names,
        device,
    )
    parts = [PartFiles(number, {step.fingerprint: _file(number)}) for number in range(settings.networks)]
    seconds = run_parts(context, steps, "difficulty", parts, STAGE.unit, task, pool)
    written = len(context.artifact(step).parts("difficulty"))
    context.complete(step, rows_in=settings.networks, rows=written, seconds=seconds[step.fingerprint])


def _file(number: int) -> str:
    return f"{number:04d}.parquet"


@dataclass(frozen=True)
class RankTask:
    """Train one network and write its rows."""

    images: Artifact
    target: Artifact
    teach: Teach
    settings: Rank
    class_names: Sequence[str]
    device: str

    def __call__(self, number: int) -> dict[str, float]:
        """Write the file of a network, and return the seconds that it took, by the path of the artifact."""
        start, size = time.perf_counter(), self.teach.input_size
        columns = ["image_id", "label", "class_name"]
        identities = self.images.rows("images", IMAGES, columns, "split", pa.array(["train"])).sort_by("image_id")
        with memory_retained(), naming_memory_fix(_TOO_LITTLE_MEMORY):
            train = load_split(self.images, "train", size, size, count_cores())
            rows = measure_difficulty(
                identities, train, self.class_names, self.teach, self.settings.epochs, number, self.device
            )
        self.target.write_table(f"difficulty/{_file(number)}", rows)
        return {self.target.path: time.perf_counter() - start}
