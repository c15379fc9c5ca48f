"""The records that describe a stage: Stage, its kinds of Work, and the Load that a job puts on each of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.engine.context import Context
    from vlcp_ray.models.pretrained import Use
    from vlcp_ray.scale import Pool, Scale
    from vlcp_ray.store.artifact import Step

#: Cost of a training step in forward passes: its own forward pass, and a backward pass of twice its operations.
TRAINING_PASSES: Final = 3


class BatchDone(NamedTuple):
    """What one measured batch did: images, amount in the work's unit, and mean tokens per caption (else 0)."""

    images: int
    amount: float
    tokens: float = 0.0


Batch = Callable[[], BatchDone]


@dataclass(frozen=True, eq=False)
class Work:
    """A kind of work that `vlcp-ray bench` measures alone, and whose rate `plan` uses for its estimate.

    Args:
        name: used by `bench --only` and by the rates under the root.
        pool: the pool of the scale whose workers do the work.
        batch: `module:function` that takes (job, pool) and returns a `Batch`.
        on_cpu, on_gpu: for a device that was not measured: the share of its peak, and the assumed seconds from the
            start of a process to its first batch.
        is_published: whether the share of a GPU is from a published measurement; otherwise it is assumed.
        launch: seconds that a process needs to launch the kernels of a batch, in which a GPU cannot be faster, however
            many operations it computes per second; measured on a GPU that waited for them.
        unit: what a rate counts.
        images_per_second: assumed for a core that was not measured, where the unit is images.
        overhead: the kind of Ray start-up time that comes before the first row.
        retains_memory: whether its workers keep freed memory (`monitoring.allocator`).
        model: number that identifies the job's model, as `pretrained.identify`; a measured rate is used only for the
            model that it was measured with.
        wanted: whether a job has this work.
    """

    name: str
    pool: str
    batch: str
    on_cpu: tuple[float, float] = (1.0, 0.0)
    on_gpu: tuple[float, float] = (1.0, 0.0)
    is_published: bool = False
    launch: float = 0.0
    unit: Literal["operations", "images"] = "operations"
    images_per_second: float = 0.0
    overhead: Literal["plan", "train", "task"] = "plan"
    retains_memory: bool = False
    model: Callable[["Job"], int | None] = lambda job: None
    wanted: Callable[["Job"], bool] = lambda job: True

    def make_batch(self, job: "Job", pool: "Pool") -> Batch:
        """Load the models and rows that the work needs, and return a function that does one batch."""
        batch: Batch = resolve_name(self.batch)(job, pool)
        return batch


@dataclass(frozen=True)
class Traffic:
    """Bytes that each worker moves, one worker beside the other, in addition to its operations.

    Args:
        memory: read from the memory of its device and written to it, once for each step.
        images: of a step on a worker.
        link: sent to the next worker.
        hidden: the part of the seconds of its operations in which it can send.
    """

    memory: float = 0.0
    images: int = 1
    link: float = 0.0
    hidden: float = 0.0


@dataclass(frozen=True, eq=False)
class Load:
    """How much of one kind of work a job gives to a stage.

    Args:
        images: images that are read or generated, 0 where another load of the stage has counted them already.
        amount: operations, or images where the work's unit is images; NaN where the model was never counted.
        units: pieces that can be processed in parallel, by as many workers; 1: one worker does everything.
        largest: the amount of the largest piece, at whose end other workers have nothing to do.
        starts: how many times, one after the other, its workers start; 0 where another load has started them.
        holds_pool: whether all workers of the pool are held until it ends, busy or not.
        pool: the pool whose workers do it, where that is not the pool of the work.
        traffic: bytes that are moved in addition.
        batches: steps that its workers take, all together.
        paused: seconds in which the workers wait, as for checkpoints, for each second of work.
    """

    work: Work
    images: int
    amount: float
    units: float
    largest: float = 0.0
    starts: int = 1
    holds_pool: bool = False
    pool: str = ""
    traffic: Traffic = Traffic()
    batches: float = 0.0
    paused: float = 0.0

    @property
    def pool_name(self) -> str:
        return self.pool or self.work.pool


@dataclass(frozen=True)
class Memory:
    """The GPU memory that one use of models needs, in GiB; NaN for a model that was never counted.

    Args:
        use: its name in the output of `plan`.
        setting: the setting that an error names.
        pool: the pool of the scale whose workers hold the models.
        gib: with the images that the pool's batch has.
        least: with one image at a time.
        fix: what helps where it does not fit.
        is_limited: whether its library takes no more than the worker's share of the GPU.
    """

    use: str
    setting: str
    pool: str
    gib: float
    least: float
    fix: str
    is_limited: bool = False


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage, as the pipeline, the estimates, the report and the CLI see it.

    Args:
        name: of its folder in this package and of its artifacts' folders.
        version: raised when its results change without a change of settings.
        summary: its inputs and outputs, printed by `plan`.
        tables: the schemas of its parquet tables by folder, at the shapes of Stable Diffusion at 512 pixels.
        files: the names of the files and folders that it writes beside these tables.
        pools: the pools of the scale whose workers it holds at the same time.
        unit: what its progress and its rate count.
        counted: the manifest's field with the number of units.
        rows: what the rows of its manifests are.
        row_wise: whether each input row is either written or rejected.
        gang_scheduled: whether all of its workers must start together and stay, as the ranks of a training do.
        output: the name that `plan` prints for the bytes that it writes.
        works: its kinds of work.
        loads: the work that a job gives it.
        disk: GiB that it writes.
        memory: what its models need of a GPU.
        models: the pretrained models that a job loads in it.
        check: refuse a job whose inputs cannot work, before anything starts.
        check_scale: refuse a job that its workers cannot do, before anything starts.
    """

    name: str
    version: int
    summary: str
    tables: Mapping[str, "pa.Schema"] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    unit: str = "images"
    counted: str = "rows"
    rows: str = "images"
    row_wise: bool = False
    gang_scheduled: bool = False
    output: str = ""
    works: tuple[Work, ...] = ()
    loads: Callable[["CostInputs", Sequence["Step"]], Iterator[Load]] = lambda inputs, steps: iter(())
    disk: Callable[["CostInputs", Sequence["Step"]], float] = lambda inputs, steps: 0.0
    memory: Callable[["Job", "ModelMemory", "Scale"], Iterator[Memory]] = lambda job, models, scale: iter(())
    models: Callable[["Job"], Iterator["Use"]] = lambda job: iter(())
    check: Callable[["Job"], None] = lambda job: None
    check_scale: Callable[["Job", "Scale"], None] = lambda job, scale: None

    def run(self, context: "Context", steps: Sequence["Step"]) -> None:
        """Make the artifacts of these steps; parts that exist already are kept."""
        resolve_name(f"vlcp_ray.stages.{self.name}.run:run")(context, steps)
