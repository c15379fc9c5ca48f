"""The clustering of one class, for `vlcp-ray bench`."""

import numpy as np
import pyarrow as pa

from vlcp_ray.config import Job
from vlcp_ray.models.pretrained import latent_shape
from vlcp_ray.scale import Pool
from vlcp_ray.schemas import tensor_array
from vlcp_ray.stages.prototype import cluster_flops
from vlcp_ray.stages.prototype.cluster import prototype as cluster
from vlcp_ray.stages.sample_rows import sample_caption
from vlcp_ray.stages.stage import Batch, BatchDone


def prototype(job: Job, _: Pool) -> Batch:
    """Return a function that clusters one class: as many latents as the job expects, at most 1,300."""
    expected = job.ingest.expect
    count = min(1300, expected.train // expected.classes if expected else 130)
    shape, ipc = latent_shape(job.base_model, job.encode.resolution), min(max(job.ipc), count // 2)
    latents = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float16)
    columns = {
        "image_id": [f"{number:06d}" for number in range(count)],
        "label": [0] * count,
        "class_name": ["tench"] * count,
        "caption": [f"{sample_caption(job)} {number % 7}" for number in range(count)],
    }
    table = pa.table({**columns, "latent": tensor_array(latents)})
    flops = cluster_flops(latents[0].size, count, ipc, job.prototype.n_init)

    def batch() -> BatchDone:
        cluster(table, job.prototype, [(0, ipc)])
        return BatchDone(count, flops)

    return batch
