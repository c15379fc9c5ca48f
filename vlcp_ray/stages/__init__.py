"""The stages of the pipeline, a folder each; this list is the only one."""

from typing import Final

from vlcp_ray.stages import evaluate, finetune, generate, ingest, pair, prototype, rank, report, select, teach
from vlcp_ray.stages.stage import Stage, Work

#: In the order in which they run.
STAGES: Final[dict[str, Stage]] = {
    stage.name: stage
    for stage in (
        ingest.STAGE,
        pair.STAGE,
        finetune.STAGE,
        prototype.STAGE,
        generate.STAGE,
        teach.STAGE,
        rank.STAGE,
        select.STAGE,
        evaluate.STAGE,
        report.STAGE,
    )
}


def works() -> dict[str, Work]:
    """Return every kind of work by its name, in the order of the stages."""
    return {work.name: work for stage in STAGES.values() for work in stage.works}
