"""The record of a compared method: a way to make a distilled set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vlcp_ray.stages import prototype
from vlcp_ray.stages.stage import Load, Memory, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step

#: How a method makes its sets:
#: `generation`   a diffusion model denoises prototypes, guided by a text: the stage generate, no code of its own;
#: `prototypes`   a row-wise class, constructed with (job, batch_size), turns PROTOTYPES into SYNTHETIC;
#: `ids`          a function of (index, seed, ipc) returns the ids of the training images to take; index has the
#:                image_id and class_name of all of them, or is DIFFICULTY for a method that this is an input of;
#: `class`        a function of (rows, runs, teacher, job, device) makes, from all training images of one class, the
#:                rows of SYNTHETIC of every run (seed, ipc);
#: `labels`       a row-wise class, constructed with (job, models, batch_size), turns numbers of images of a class into
#:                SYNTHETIC; models has the artifacts of the input `model` by their fingerprint; `groups` lists the
#:                classes that share a model of such an artifact;
#: `partition`    a function of (rows, part, teacher, job, device) makes, from the training images of several classes,
#:                the rows of SYNTHETIC of one `Part`; `parts` lists them;
#: `train split`  no set is made: networks are trained on all training images.
Form: TypeAlias = Literal["generation", "prototypes", "ids", "class", "labels", "partition", "train split"]

Run: TypeAlias = tuple[int, int]  # seed, ipc


@dataclass(frozen=True)
class Part:
    """What a method makes at once of its sets, from several classes; an interrupted run repeats parts as a whole.

    Its images are a function of the labels, the seed and the number (and, where a part belongs to one set, of its ipc):
    not of the other sets that a job asks for.

    Args:
        labels: of its classes, sorted.
        runs: the sets that get images of it, all of one seed.
        number: among the parts of these classes and this seed.
    """

    labels: tuple[int, ...]
    runs: tuple[Run, ...]
    number: int = 0

    @property
    def seed(self) -> int:
        """The seed of its sets."""
        return self.runs[0][0]

    @property
    def file(self) -> str:
        """The name of its file in each of its sets."""
        return f"{self.labels[0]:05d}-{self.number:04d}.parquet"


def partition(labels: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Divide sorted labels into the fewest partitions of at most `most` classes, whose sizes differ by at most one."""
    count = -(-len(labels) // most)
    bounds = [len(labels) * number // count for number in range(count + 1)]
    return [tuple(labels[start:stop]) for start, stop in pairwise(bounds)]


@dataclass(frozen=True, eq=False)
class Method:
    """One compared method.

    Args:
        name: as `compare.methods` names it.
        summary: what its images are, in one line.
        source: the publication that it comes from.
        form: how it makes its sets.
        inputs: the artifacts that a set is made from: images, prototypes, model, teacher or difficulty.
        code: `module:name` of its class or function.
        parts: for the form `partition`: the parts of some sets, given the job, the labels and the sets.
        groups: for the form `labels`: the labels of each group of classes, given the job and all labels.
        columns: for the form `partition`: the columns of the training images that it reads.
        settings: the settings that determine its sets, given the job and the content hash of its base model.
        clustering: the settings that determine the prototypes that it uses.
        loads: the work of making its sets, for methods that the stage generate does not make.
        works: those kinds of this work that `vlcp-ray bench` measures.
        tuning: the settings that determine its own fine-tuned model, which the stage finetune makes from the images and
            which is its input `model`; None where it has none.
        memory: what its networks need of a GPU.
        rows_per_image: rows of SYNTHETIC that an image of a set is decoded to, given the job.
        optimised_from: what the pixels of its images are optimised from; "": they are generated or real.
        options: the fields of `Compare` that only this method, and others that list them, use.
        check: refuse a job whose inputs cannot work, before anything starts.
    """

    name: str
    summary: str
    source: str
    form: Form
    inputs: tuple[str, ...]
    code: str = ""
    parts: Callable[["Job", Sequence[int], Sequence[Run]], list[Part]] = lambda job, labels, runs: []
    groups: Callable[["Job", Sequence[int]], list[list[int]]] = lambda job, labels: []
    columns: tuple[str, ...] = ("image_id", "label", "class_name", "image")
    settings: Callable[["Job", str], dict[str, Any]] = lambda job, base_model: {}
    clustering: Callable[["Job"], dict[str, Any]] = lambda job: prototype.hashed_settings(job.prototype)
    loads: Callable[["CostInputs", Sequence["Step"]], Iterator[Load]] = lambda inputs, steps: iter(())
    works: tuple[Work, ...] = ()
    memory: Callable[["Job", "ModelMemory", "Scale"], Iterator[Memory]] = lambda job, models, scale: iter(())
    rows_per_image: Callable[["Job"], int] = lambda job: 1
    optimised_from: Literal["", "noise", "real images"] = ""
    options: tuple[str, ...] = ()
    tuning: Callable[["Job"], dict[str, Any]] | None = None
    check: Callable[["Job"], None] = lambda job: None
