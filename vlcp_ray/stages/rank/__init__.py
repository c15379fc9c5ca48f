"""rank: IMAGES -> how difficult each training image is for networks in the first epochs of their training."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pydantic import Field

from vlcp_ray.models.networks import TEACHER_NORM
from vlcp_ray.schemas import column, identity_columns
from vlcp_ray.settings import Positive, Settings
from vlcp_ray.stages import evaluate, teach
from vlcp_ray.stages.stage import TRAINING_PASSES, Load, Stage

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step


class Rank(Settings):
    """Ranking of the training images by difficulty, for el2n and forgetting: early networks of the teacher's kind."""

    networks: Positive = Field(5, description="networks with different first weights, whose scores are averaged")
    epochs: Positive = Field(10, description="the first so many of teach.epochs, after which the training stops")


DIFFICULTY: Final = pa.schema(
    [
        *identity_columns(),
        column("network", pa.int32(), "number of the network, from 0"),
        column("el2n", pa.float32(), "length of the vector of its probabilities minus the label's, after the epochs"),
        column(
            "forgettings",
            pa.int32(),
            "times that it went from right to wrong, from one epoch to the next; -1: it was never right",
        ),
    ]
)

#: Settings of the teacher without effect on these trainings.
_UNUSED: Final = {"validations", "checkpoint"}


def hashed_settings(job: "Job") -> dict[str, Any]:
    """Return the settings that determine the table: its own, and those of the teacher's training."""
    first = job.teach.teachers()[0]
    training = first.model_dump(exclude=_UNUSED) | {"network": first.name, "recipe": asdict(teach.RECIPE)}
    return job.rank.model_dump() | {"teacher": training}


def _loads(inputs: "CostInputs", _: Sequence["Step"]) -> Iterator[Load]:
    settings, images = inputs.job.teach.teachers()[0], inputs.images
    each = inputs.models.classify(settings.name, settings.input_size, settings.width, images.classes, TEACHER_NORM)
    own = inputs.job.rank
    amount = own.networks * (TRAINING_PASSES * own.epochs + 1) * images.train * each
    yield Load(evaluate.CLASSIFY, images.train, amount, units=own.networks)


STAGE: Final = Stage(
    "rank",
    version=1,
    summary="IMAGES -> how difficult each training image is",
    tables={"difficulty": DIFFICULTY},
    pools=evaluate.STAGE.pools,
    unit="networks",
    rows="networks",
    loads=_loads,
)
