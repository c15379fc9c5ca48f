"""The measured batch of `vlcp-ray bench`: checked images."""

from vlcp_ray import images
from vlcp_ray.config import Job
from vlcp_ray.scale import Pool
from vlcp_ray.stages.sample_rows import Sample
from vlcp_ray.stages.stage import Batch, BatchDone


def ingest(job: Job, _: Pool) -> Batch:
    """Return a function that checks 64 images by decoding them."""
    files = Sample(job).images(64)["image"].to_pylist()

    def batch() -> BatchDone:
        for content in files:
            images.check(content, job.ingest.max_pixels)
        return BatchDone(len(files), len(files))

    return batch
