"""Sample rows for the measurements of `vlcp-ray bench`."""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

import numpy as np
import pyarrow as pa

from vlcp_ray.config import Job
from vlcp_ray.demo import digits
from vlcp_ray.images import encode_png
from vlcp_ray.models.pretrained import dit_side, latent_shape
from vlcp_ray.schemas import tensor_array
from vlcp_ray.sources.digits import LAYOUT

_EMBEDDED: Final = LAYOUT.name
_PHOTO_SHAPE: Final = (375, 500, 3)  # of a usual photograph of ImageNet


@dataclass(frozen=True)
class Sample:
    """Sample rows of a job: the embedded digits if they are its images, else noise of a photograph's size."""

    job: Job

    def images(self, count: int) -> pa.Table:
        """Make `count` rows of IMAGES; the digits are repeated."""
        if self.job.ingest.source == _EMBEDDED:
            rows = [dict(row) for row in islice(cycle(digits.rows("train")), count)]
        else:
            rows = [self._noise(number) for number in range(count)]
        for number, row in enumerate(rows):
            row["image_id"] = f"{number:06d}"
        return pa.Table.from_pylist(rows)

    def _noise(self, number: int) -> dict[str, Any]:
        pixels = np.random.default_rng(number).integers(0, 256, _PHOTO_SHAPE).astype(np.uint8)
        return {"image_id": "", "label": 0, "class_name": "tench", "split": "train", "image": encode_png(pixels)}

    def pairs(self, count: int) -> pa.Table:
        """Make `count` rows of PAIRS, with moments of noise."""
        channels, height, width = latent_shape(self.job.base_model, self.job.encode.train_resolution)
        moments = np.random.default_rng(0).normal(size=(count, 2, 2 * channels, height, width)).astype(np.float16)
        ids = [f"{number:06d}" for number in range(count)]
        return pa.table(
            {"image_id": ids, "caption": [sample_caption(self.job)] * count, "train_moments": tensor_array(moments)}
        )

    def moments(self, count: int) -> pa.Table:
        """Make `count` rows of the training images of a DiT, with moments of noise."""
        side = dit_side(self.job.compare.minimax.model)
        moments = np.random.default_rng(0).normal(size=(count, 2, 8, side, side)).astype(np.float16)
        ids = [f"{number:06d}" for number in range(count)]
        return pa.table({"image_id": ids, "label": [0] * count, "train_moments": tensor_array(moments)})

    def prototypes(self, count: int) -> pa.Table:
        """Make `count` rows of PROTOTYPES, with latents of noise."""
        shape = latent_shape(self.job.base_model, self.job.encode.resolution)
        latents = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
        ids = [f"0000-{number:04d}" for number in range(count)]
        columns = {"prototype_id": ids, "seed": [0] * count, "text": [sample_caption(self.job)] * count}
        return pa.table({**columns, "class_name": ["tench"] * count, "latent": tensor_array(latents)})


def sample_caption(job: Job) -> str:
    """Make a caption of a usual length, which fills one slice of 77 token ids."""
    return "a thin upright shape " * (8 if job.ingest.source == _EMBEDDED else 15)
