"""One batch of generated images, for `vlcp-ray bench`."""

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import model_flops
from vlcp_ray.models.pretrained import latent_shape
from vlcp_ray.scale import Pool
from vlcp_ray.stages.generate import image_flops
from vlcp_ray.stages.generate.img2img import Img2Img
from vlcp_ray.stages.sample_rows import Sample
from vlcp_ray.stages.stage import Batch, BatchDone


def generate(job: Job, pool: Pool) -> Batch:
    """Load the pipeline, and return a function that generates a batch of images."""
    img2img = Img2Img(job.generate, job.base_model, pool.batch_size)
    table = Sample(job).prototypes(pool.batch_size)
    side = latent_shape(job.base_model, job.encode.resolution)[1]
    flops = image_flops(job.generate, model_flops(job), side) * len(table)

    def batch() -> BatchDone:
        img2img(table)
        return BatchDone(len(table), flops)

    return batch
