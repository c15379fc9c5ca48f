"""The decoding of image prototypes and the sampling of a DiT, measured by `vlcp-ray bench`."""

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import model_flops
from vlcp_ray.methods.centroid import Decode
from vlcp_ray.methods.minimax import GUIDED_CHANNELS, image_flops
from vlcp_ray.models.dit import Sampler
from vlcp_ray.models.pretrained import dit_side, latent_shape
from vlcp_ray.models.stable_diffusion import pick_device
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


def sample(job: Job, pool: Pool) -> Batch:
    """Load the DiT, and return a function that generates one batch of images."""
    settings, count = job.compare.minimax, pool.batch_size
    options = {"guidance_scale": settings.guidance_scale, "guided_channels": GUIDED_CHANNELS}
    sampler = Sampler(settings.model, pick_device(), count, steps=settings.num_inference_steps, **options)
    flops, side = model_flops(job), dit_side(settings.model)
    each = image_flops(settings, flops, side)

    def batch() -> BatchDone:
        sampler([0] * count, list(range(count)))
        return BatchDone(count, each * count)

    return batch
