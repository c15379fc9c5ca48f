"""Knows how much of a machine or cluster each stage takes: numbers that change the speed and never the result."""

from pydantic import Field

from vlcp_ray.config import Positive, Settings, build, read_toml


class Pool(Settings):
    """A pool of actors or tasks."""

    num_workers: Positive = 1
    num_cpus: float = Field(1.0, gt=0, description="logical CPUs of each worker")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of each worker; a fraction shares one")
    batch_size: Positive = Field(32, description="rows per call; per device in fine-tuning")


class Scale(Settings):
    """One pool for each kind of work, and the size of the blocks that stream between them."""

    rows_per_block: Positive = Field(64, description="rows that are written, and lost by a crash, at once")
    ingest: Pool = Pool()
    caption: Pool = Pool()
    encode: Pool = Pool()
    finetune: Pool = Pool()
    prototype: Pool = Pool()
    generate: Pool = Pool()
    evaluate: Pool = Pool()


def load_scale(path: str) -> Scale:
    """Read a scale file; the errors are those of `load_job`."""
    return build(Scale, read_toml(path), path)
