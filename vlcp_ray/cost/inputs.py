"""The inputs of the stages' estimates of work and disk."""

import math
from dataclasses import dataclass, field
from typing import Final

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import ModelFlops, model_flops
from vlcp_ray.models.pretrained import expected_latent_shape
from vlcp_ray.scale import Scale
from vlcp_ray.stages.ingest import Expect

_SLICE: Final = 75  # tokens of a text in one slice of 77 ids, which also has a start and an end mark


@dataclass(frozen=True)
class CostInputs:
    """A job, the size of its image set and the operations of its models.

    Args:
        images: expected by the settings, or counted by ingest.
        models: operations of the job's models; NaN where a model was never counted.
        caption_tokens: number of tokens of a caption.
        scale: the hardware, of which some work depends.
    """

    job: Job
    images: Expect
    models: ModelFlops
    caption_tokens: float = 0.0
    scale: Scale = field(default_factory=Scale)

    @classmethod
    def for_job(cls, job: Job, images: Expect, caption_tokens: float = 0.0, scale: Scale | None = None) -> "CostInputs":
        """Look up the models of a job."""
        return cls(job, images, model_flops(job), caption_tokens, scale or Scale())

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Return the shape (c, h, w) of the latent of an image of `resolution` pixels."""
        return expected_latent_shape(self.job.base_model, resolution)

    def latent_side(self, resolution: int) -> int:
        """Return the side of the latent of an image of `resolution` pixels."""
        return self.latent_shape(resolution)[1]

    def text_slices(self, column: str) -> int:
        """Count the slices of 77 ids in the text that guides generation.

        Args:
            column: `text`, a caption, or `class_name`, which fits into one slice.
        """
        return 1 if column != "text" else max(1, math.ceil(int(self.caption_tokens) / _SLICE))
