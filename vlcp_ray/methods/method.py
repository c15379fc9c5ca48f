"""The record of a compared method: a way to make a distilled set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vlcp_ray.stages import prototype
from vlcp_ray.stages.stage import Load

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step

#: How a method makes its sets:
#: `generation`   a diffusion model denoises prototypes, guided by a text: the stage generate, no code of its own;
#: `prototypes`   a row-wise class, constructed with (job, batch_size), turns PROTOTYPES into SYNTHETIC;
#: `ids`          a function of (index, seed, ipc) returns the ids of the training images to take; index has the
#:                image_id and class_name of all of them;
#: `class`        a function of (rows, runs, teacher, job, device) makes, from all training images of one class, the
#:                rows of SYNTHETIC of every run (seed, ipc);
#: `labels`       a row-wise class, constructed with (job, models, batch_size), turns numbers of images of a class into
#:                SYNTHETIC; models has the artifacts of the input `model` by their fingerprint;
#: `train split`  no set is made: networks are trained on all training images.
Form: TypeAlias = Literal["generation", "prototypes", "ids", "class", "labels", "train split"]

Run: TypeAlias = tuple[int, int]  # seed, ipc


@dataclass(frozen=True, eq=False)
class Method:
    """One compared method.

    Args:
        name: as `compare.methods` names it.
        summary: what its images are, in one line.
        source: the publication that it comes from.
        form: how it makes its sets.
        inputs: the artifacts that a set is made from: images, prototypes, model or teacher.
        code: `module:name` of its class or function.
        settings: the settings that determine its sets, given the job and the content hash of its base model.
        clustering: the settings that determine the prototypes that it uses.
        loads: the work of making its sets, for methods that the stage generate does not make.
        options: the fields of `Compare` that only this method uses.
        tuning: the settings that determine its own fine-tuned model, which the stage finetune makes from the images and
            which is its input `model`; None where it has none.
    """

    name: str
    summary: str
    source: str
    form: Form
    inputs: tuple[str, ...]
    code: str = ""
    settings: Callable[["Job", str], dict[str, Any]] = lambda job, base_model: {}
    clustering: Callable[["Job"], dict[str, Any]] = lambda job: prototype.hashed_settings(job.prototype)
    loads: Callable[["CostInputs", Sequence["Step"]], Iterator[Load]] = lambda inputs, steps: iter(())
    options: tuple[str, ...] = ()
    tuning: Callable[["Job"], dict[str, Any]] | None = None
