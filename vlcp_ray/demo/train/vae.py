"""Train the VAE of the tiny Stable Diffusion: 32 px to 4 x 4 x 4 latents, whose averages decode to glyphs too."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vlcp_ray.demo import digits
from vlcp_ray.demo.train.training import Training

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

STEPS = 1500
BATCH = 32
LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
SCALED = 2000  # images whose latents determine the scaling factor


def build() -> "AutoencoderKL":
    """Build an untrained VAE of 0.8 M parameters that reduces each side by a factor of 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=digits.RESOLUTION,
    )


def train(images: NDArray[np.uint8], steps: int = STEPS, seed: int = 0) -> "AutoencoderKL":
    """Train the VAE for `steps` of 32 images (n, 32, 32, 3) uint8.

    The loss is L1 + MSE of the pixels in [-1, 1], 0.5 x L1 of their horizontal and vertical differences, and 1e-4 x KL
    per image. `scaling_factor` is 1 / std of the latents of the images.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = build()
    training = Training("vae", vae.parameters(), steps, BATCH, LEARNING_RATE, weight_decay=1e-4)
    stored = torch.from_numpy(images).permute(0, 3, 1, 2)
    for _ in range(steps):
        pixels = stored[torch.randint(len(stored), (BATCH,), generator=generator)].float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        training.step(reconstruction_loss(decoded, pixels) + KL_WEIGHT * posterior.kl().mean())
    vae.eval()
    latents = encode(vae, images[:SCALED], seed) / vae.config.scaling_factor
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Compute L1 + MSE + 0.5 L1 of the differences between neighbouring pixels; inputs (n, 3, h, w) in [-1, 1]."""
    edges = sum(functional.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis)) for axis in (2, 3))
    return functional.l1_loss(decoded, pixels) + functional.mse_loss(decoded, pixels) + EDGE_WEIGHT * edges


@torch.no_grad()
def moments(vae: "AutoencoderKL", images: NDArray[np.uint8]) -> torch.Tensor:
    """Encode uint8 images (n, 32, 32, 3) to means and standard deviations of scaled latents, (n, 2, 4, 4, 4)."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    parts = []
    for start in range(0, len(pixels), 256):
        posterior = vae.encode(pixels[start : start + 256].float() / 127.5 - 1).latent_dist
        parts.append(torch.stack([posterior.mean, posterior.std], dim=1))
    scale: float = vae.config.scaling_factor
    return torch.cat(parts) * scale


@torch.no_grad()
def encode(vae: "AutoencoderKL", images: NDArray[np.uint8], seed: int | None = None) -> torch.Tensor:
    """Encode uint8 images (n, 32, 32, 3) to scaled latents (n, 4, 4, 4): posterior samples, or means without a seed."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    latents = []
    for start in range(0, len(pixels), 256):
        posterior = vae.encode(pixels[start : start + 256]).latent_dist
        latents.append(posterior.mode() if generator is None else posterior.sample(generator))
    scale: float = vae.config.scaling_factor
    return torch.cat(latents) * scale


@torch.no_grad()
def decode(vae: "AutoencoderKL", latents: torch.Tensor) -> NDArray[np.uint8]:
    """Decode scaled latents (n, 4, 4, 4) to uint8 images (n, 32, 32, 3)."""
    raw = latents / vae.config.scaling_factor
    pixels = torch.cat([vae.decode(raw[start : start + 256]).sample for start in range(0, len(raw), 256)])
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def mean_squared_error(vae: "AutoencoderKL", images: NDArray[np.uint8]) -> float:
    """Compute the mean squared error of images decoded from their posterior means, pixels in 0 to 1."""
    decoded = decode(vae, encode(vae, images))
    return float(np.mean((decoded.astype(np.float64) - images) ** 2) / 255**2)
