"""centroid: the image prototypes decoded without denoising."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from vlcp_ray.methods.method import Method
from vlcp_ray.stages import generate, select
from vlcp_ray.stages.stage import Load

if TYPE_CHECKING:
    import pyarrow as pa

    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.store.artifact import Step


class Decode:
    """Row-wise: decode the centroids of PROTOTYPES to images, without noise or text: PROTOTYPES to SYNTHETIC."""

    def __init__(self, job: "Job", batch_size: int) -> None:
        """Load the VAE of the base model, for `batch_size` latents at a time."""
        from vlcp_ray.models import stable_diffusion
        from vlcp_ray.models.batches import Batches

        self.image_size, self.batches = job.generate.image_size, Batches(batch_size, "generate.batch_size")
        self.vae = stable_diffusion.load_vae(job.base_model, stable_diffusion.pick_device())

    def __call__(self, table: "pa.Table") -> "pa.Table":
        """Return one image per row; `text` is empty and `seed` 0, since no noise is sampled."""
        import numpy as np
        import torch

        from vlcp_ray import schemas
        from vlcp_ray.methods.synthetic_rows import from_prototypes
        from vlcp_ray.models import stable_diffusion

        latents = torch.from_numpy(schemas.tensors(table["latent"]).astype(np.float32))
        pictures = stable_diffusion.decode(self.vae, latents, self.batches)
        return from_prototypes(table, "centroid", pictures, self.image_size, [""] * len(table), [0] * len(table))


def _settings(job: "Job", base_model: str) -> dict[str, Any]:
    return {"image_size": job.generate.image_size, "base_model": base_model}


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    count = generate.count_images(inputs, steps)
    side = inputs.latent_side(inputs.job.encode.resolution)
    yield Load(select.DECODE, count, count * inputs.models.decode(side), units=count)


METHOD: Final = Method(
    "centroid",
    "image prototypes decoded without denoising",
    "ablation of Dataset Distillation via Vision-Language Category Prototype",
    "prototypes",
    ("prototypes",),
    code="vlcp_ray.methods.centroid:Decode",
    settings=_settings,
    loads=_loads,
    works=(select.DECODE,),
)
