"""Train the tiny DiT on latents of printed glyphs, of which each character is a class."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from vlcp_ray.demo import digits
from vlcp_ray.demo.train import denoising, glyphs
from vlcp_ray.demo.train.vae import moments
from vlcp_ray.models.dit import Diffusion, share_embeddings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel

EMA_DECAY = 0.998
CLASS_DROPOUT = 0.1
#: The names of the classes in the order of their numbers: ten digits, then letters.
NAMES: Final = tuple(glyphs.NAMES.values())


def build() -> "DiTTransformer2DModel":
    """Build an untrained DiT of 1.2 M parameters for 4 x 4 latents, which predicts noise and variance as DiT-XL/2."""
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        attention_bias=True,
        sample_size=digits.RESOLUTION // 8,
        patch_size=1,
        num_embeds_ada_norm=len(NAMES),
    )
    # As DiT: blocks that change nothing, and an output of zero.
    for layer in (
        *(block.norm1.linear for block in network.transformer_blocks),
        network.proj_out_1,
        network.proj_out_2,
    ):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return network


def build_scheduler() -> "DDIMScheduler":
    """Build a scheduler with the settings of that of DiT-XL/2."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        num_train_timesteps=denoising.TIMESTEPS,
    )


def train(
    vae: "AutoencoderKL", images: NDArray[np.uint8], names: list[str], steps: int = denoising.STEPS, seed: int = 0
) -> "DiTTransformer2DModel":
    """Train the DiT on `steps` of 64 latents, and return its moving average (EMA).

    Args:
        vae: trained.
        images: (n, 32, 32, 3) uint8.
        names: of what each image shows.
        steps: of the optimizer.
        seed: of weights, batches, noise and classes that are dropped.
    """
    torch.manual_seed(seed)
    numbers = torch.tensor([NAMES.index(name) for name in names])
    network = share_embeddings(build()).eval()  # classes are dropped here, not in each block
    diffusion = Diffusion(build_scheduler(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)

    def loss(chosen: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        dropped = torch.rand(len(chosen), generator=generator) < CLASS_DROPOUT
        classes = torch.where(dropped, len(NAMES), numbers[chosen])
        noisy = diffusion.add_noise(clean, noise, timesteps)
        output = network(noisy, timesteps, classes, return_dict=False)[0]
        return diffusion.losses(output, clean, noisy, noise, timesteps).mean()

    return denoising.train(
        "dit",
        network,
        moments(vae, images),
        loss,
        generator,
        steps=steps,
        weight_decay=0.0,
        ema_decay=EMA_DECAY,
    )


def save(folder: Path, vae: "AutoencoderKL", network: "DiTTransformer2DModel") -> None:
    """Write a diffusers folder in the format of facebook/DiT-XL-2-256, in float16, with the names of the classes."""
    from diffusers import DiTPipeline

    plain = build()
    plain.load_state_dict(network.state_dict())  # each block with an embedding of its own, as diffusers stores them
    # Without `_name_or_path`, which would be the path on this machine that `vae` was read from.
    own_vae = type(vae)(**{name: value for name, value in vae.config.items() if not name.startswith("_")})
    own_vae.load_state_dict(vae.state_dict())
    pipeline = DiTPipeline(plain.half(), own_vae.half(), build_scheduler())
    pipeline.register_to_config(id2label={str(number): name for number, name in enumerate(NAMES)})
    pipeline.save_pretrained(folder)
