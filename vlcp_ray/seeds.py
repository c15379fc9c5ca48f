"""Derive the seed of every random choice from (seed, stage, row id) and nothing else."""

import hashlib
from typing import Final

SEED_BITS: Final = 63  # fits torch.Generator.manual_seed and a signed int64 column


def seed_for(seed: int, *keys: str | int) -> int:
    """Derive an independent seed for one row, epoch or trial.

    Args:
        seed: the job's seed.
        keys: what the randomness is for, e.g. ("caption", image_id). Their order matters.

    Returns:
        An integer in [0, 2**63), the same on every machine and in every process (unlike `hash`).
    """
    text = "\x1f".join([str(seed), *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> (64 - SEED_BITS)
