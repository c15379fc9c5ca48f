"""The decoding of image prototypes, measured by `vlcp-ray bench`."""

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import model_flops
from vlcp_ray.methods.centroid import Decode
from vlcp_ray.models.pretrained import latent_shape
from vlcp_ray.scale import Pool
from vlcp_ray.stages.sample_rows import Sample
from vlcp_ray.stages.stage import Batch, BatchDone


def decode(job: Job, pool: Pool) -> Batch:
    """Load the VAE, and return a function that decodes one batch of latents."""
    decode_rows, table = Decode(job, pool.batch_size), Sample(job).prototypes(pool.batch_size)
    each = model_flops(job).decode(latent_shape(job.base_model, job.encode.resolution)[1])

    def batch() -> BatchDone:
        decode_rows(table)
        return BatchDone(len(table), each * len(table))

    return batch
