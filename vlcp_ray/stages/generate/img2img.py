"""Generate images from prototypes under their texts."""

import numpy as np
import pyarrow as pa

from vlcp_ray import schemas
from vlcp_ray.methods.synthetic_rows import from_prototypes
from vlcp_ray.models import stable_diffusion
from vlcp_ray.models.batches import Batches
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.generate import Generate


class Img2Img:
    """Row-wise: PROTOTYPES with a column `seed` in, SYNTHETIC out. No row depends on the other rows."""

    def __init__(self, settings: Generate, model: str, batch_size: int, text: str = "text") -> None:
        """Load the pipeline.

        Args:
            settings: of the stage.
            model: the folder of the fine-tuned model, or any hub id or folder.
            batch_size: images that are generated at once.
            text: the column with the text of each image: `text`, the text prototype, or `class_name`.
        """
        self.settings = settings
        self.text = text
        self.batches = Batches(batch_size, "generate.batch_size")
        self.pipeline = stable_diffusion.load_pipeline(model, stable_diffusion.pick_device())

    def __call__(self, table: pa.Table) -> pa.Table:
        """Generate one image per row; rejects those that are not finite, also in float32 (`not_finite`).

        The seed of its noise is a function of the set's seed (column `seed`) and the prototype_id, and replaces the
        column.
        """
        ids = zip(table["seed"].to_pylist(), table["prototype_id"].to_pylist(), strict=True)
        seeds = [seed_for(seed, "generate", prototype_id) for seed, prototype_id in ids]
        texts = table[self.text].to_pylist()
        latents = schemas.tensors(table["latent"]).astype(np.float32)
        pictures = stable_diffusion.img2img(self.pipeline, self.settings, latents, texts, seeds, self.batches)
        return from_prototypes(table, "synthetic", pictures, self.settings.image_size, texts, seeds)
