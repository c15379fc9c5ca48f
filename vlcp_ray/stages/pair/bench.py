"""The measured batches of `vlcp-ray bench`: captions and latents."""

import pyarrow.compute as pc

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import model_flops
from vlcp_ray.scale import Pool
from vlcp_ray.stages.pair import encode_flops
from vlcp_ray.stages.pair.caption import CaptionRows
from vlcp_ray.stages.pair.encode import EncodeRows
from vlcp_ray.stages.sample_rows import Sample
from vlcp_ray.stages.stage import Batch, BatchDone


def caption(job: Job, pool: Pool) -> Batch:
    """Load the captioner, and return a function that captions a batch and counts its operations."""
    caption_rows, table = CaptionRows(job.caption), Sample(job).images(pool.batch_size)
    flops = model_flops(job)

    def batch() -> BatchDone:
        tokens = pc.mean(caption_rows(table)["tokens"]).as_py() or 0.0  # null of images with too many tokens
        return BatchDone(len(table), flops.caption(job.caption.prompt, tokens) * len(table), tokens)

    return batch


def encode(job: Job, pool: Pool) -> Batch:
    """Load the VAE, and return a function that encodes a batch of images."""
    encode_rows = EncodeRows(job.encode, job.base_model, pool.batch_size, job.finetune.random_flip)
    table, flops_per_image = Sample(job).images(pool.batch_size), encode_flops(job, model_flops(job))

    def batch() -> BatchDone:
        encode_rows(table)
        return BatchDone(len(table), flops_per_image * len(table))

    return batch
