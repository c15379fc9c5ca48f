"""One optimiser step of one rank, of the UNet and of the DiT, for `vlcp-ray bench`."""

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import model_flops
from vlcp_ray.models.pretrained import dit_side
from vlcp_ray.models.stable_diffusion import pick_device
from vlcp_ray.scale import FinetunePool
from vlcp_ray.stages.finetune import dit_training_flops, training_flops
from vlcp_ray.stages.finetune.batches import Schedule
from vlcp_ray.stages.finetune.dit import DitTrainer
from vlcp_ray.stages.finetune.trainer import Trainer
from vlcp_ray.stages.sample_rows import Sample
from vlcp_ray.stages.stage import Batch, BatchDone


def finetune(job: Job, pool: FinetunePool) -> Batch:
    """Load the trainer, and return a function that takes one optimiser step on a rank's share of the batch."""
    count, resolution = max(1, job.finetune.batch_size // pool.num_workers), job.encode.train_resolution
    trainer = Trainer(job.finetune, job.base_model, 0, resolution, pool, pick_device())
    table, rank_batch = Sample(job).pairs(count), Schedule(count, 1, count, 0).rank_batch(0)
    flops = training_flops(job, model_flops(job), pool.gradient_checkpointing) * count

    def batch() -> BatchDone:
        trainer.step(trainer.prepare(table, rank_batch)).item()
        return BatchDone(count, flops)

    return batch


def finetune_dit(job: Job, pool: FinetunePool) -> Batch:
    """Load the trainer of the DiT, and return a function that takes one optimiser step on a rank's rows."""
    settings = job.compare.minimax
    count, side = max(1, settings.batch_size // pool.num_workers), dit_side(settings.model)
    trainer = DitTrainer(settings, 0, {0: 0}, pool, pick_device())
    table, rank_batch = Sample(job).moments(count), Schedule(count, 1, count, 0).rank_batch(0)
    flops = dit_training_flops(model_flops(job), side, pool.gradient_checkpointing) * count

    def batch() -> BatchDone:
        trainer.step(trainer.prepare(table, rank_batch)).item()
        return BatchDone(count, flops)

    return batch
