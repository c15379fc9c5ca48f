"""The job that scores sets, and the scores beside where the sets came from."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vlcp_ray.config import Compare, Job
from vlcp_ray.methods import METHODS, full, herding, k_center, random_images
from vlcp_ray.scoring.class_names import JobClasses
from vlcp_ray.scoring.given import describe
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import open_source
from vlcp_ray.stages.ingest import CLASSES
from vlcp_ray.store.artifact import Artifact

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: What sets are compared with, unless the user says: random images and coresets of real images.
BESIDE: Final = (random_images.METHOD.name, herding.METHOD.name, k_center.METHOD.name)
_MADE_OF: Final = {"images", "teacher", "difficulty"}  # the inputs of methods that select images


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of sets that were made elsewhere, beside those of random images and coresets.

    Args:
        trials: SCORES of all sets.
        sets: of each given set where it came from and what it is: method (its name), seed, ipc, source, form, images,
            images_per_class, sizes, scale, labels, notes, artifact.
        measures: coverage, diversity and redundancy of every set.
        page: the path of the report.
    """

    trials: "pa.Table" = field(repr=False)
    sets: tuple[dict[str, Any], ...]
    measures: tuple[dict[str, Any], ...] = field(repr=False)
    page: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sets; the others are compared with the first."""
        return tuple(dict.fromkeys(str(facts["method"]) for facts in self.sets))

    @property
    def table(self) -> "pd.DataFrame":
        """The score table as a pandas DataFrame, as `vlcp_ray.scores` returns it; `source` is empty for our sets."""
        import pandas as pd

        from vlcp_ray.stages.report.scores import score_summary

        rows = score_summary(self.trials, self.names)
        return pd.DataFrame([{**row, "source": self._source(row)} for row in rows])

    def __str__(self) -> str:
        """Format the score table, and what each set is."""
        from vlcp_ray.stages.report.scores import score_table

        lines = [line for facts in self.sets for line in describe(facts)]
        return "\n".join([score_table(self.trials, self.names), "", *lines])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def as_json(self) -> dict[str, Any]:
        """Return the objects of `report --json`: trials, with the source of those of given sets, differences and sets.

        `given` has the facts of the given sets.
        """
        from vlcp_ray.stages.report.scores import differences_json, rounded, scores_json

        trials = [{**row, "source": self._source(row)} for row in scores_json(self.trials)]
        found = {"trials": trials, "differences": differences_json(self.trials, self.names)}
        found |= {"sets": rounded(list(self.measures)), "given": list(self.sets)}
        return found

    def _source(self, row: dict[str, Any]) -> str:
        """Return where the sets of a row came from."""
        key = [name for name in ("method", "ipc", "seed") if name in row]
        same = [facts for facts in self.sets if all(facts[name] == row[name] for name in key)]
        return ", ".join(facts["source"] for facts in same)


def scoring_job(job: Job, beside: Sequence[str] | None, keys: Sequence[tuple[int, int]] = ()) -> Job:
    """Return the job whose sets a given set is compared with; its images, teacher and evaluation are those of `job`.

    Args:
        beside: the methods that it is compared with; None: BESIDE, and the full train split where the job trains on it.
        keys: seed and ipc of the given sets; empty: not known yet.

    Raises:
        ConfigError: a method is none, or distils.
    """
    whole = [full.METHOD.name] if full.METHOD.name in job.compare.methods else []
    names = [*BESIDE, *whole] if beside is None else list(dict.fromkeys(beside))
    possible = [name for name, method in METHODS.items() if {*method.inputs} <= _MADE_OF and not method.optimised_from]
    for name in names:
        if name not in possible:
            raise ConfigError(f"--beside {name}: nothing is distilled here; choose among {', '.join(possible)}")
    if not names:
        raise ConfigError(f"--beside: name at least one of {', '.join(possible)}")
    options = {name: getattr(job.compare, name) for one in names for name in METHODS[one].options}
    changed: dict[str, Any] = {"compare": Compare(methods=tuple(names), **options)}
    if keys:
        changed |= {"seeds": tuple(sorted({seed for seed, _ in keys})), "ipc": tuple(sorted({ipc for _, ipc in keys}))}
    return job.model_copy(update=changed)


def job_classes(job: Job, images: Artifact) -> JobClasses:
    """Return the classes of a job, as ingest has recorded them, or else as the names of its files tell.

    Raises:
        ConfigError: the image set cannot be opened.
    """
    recorded = images.read_bytes(CLASSES) if images.manifest() is not None else None
    if recorded:
        keys, names = json.loads(recorded)[:2]
        return JobClasses(tuple(keys), tuple(names))
    found = open_source(job.ingest).classes
    return JobClasses(found.keys, found.names)
