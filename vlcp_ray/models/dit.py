"""DiT (Peebles and Xie 2023): load its parts, the weights that DiffFit trains, its training loss, and sampling.

The formulas are those of Improved DDPM (Nichol and Dhariwal 2021), which DiT's code uses.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from vlcp_ray.images import Pixels
from vlcp_ray.models import stable_diffusion
from vlcp_ray.models.batches import Batches
from vlcp_ray.models.pretrained import folder, pinned

_LOG_2: Final = float(np.log(2.0))
#: Half the width of one of 256 levels of a value in [-1, 1].
_HALF_LEVEL: Final = 1 / 255
_LEAST: Final = 1e-12  # probability whose logarithm is taken


class Scaled(nn.Module):
    """A linear layer whose outputs are multiplied by trained factors, which start at one (DiffFit, Xie et al. 2023)."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Apply the layer, then the factors: (..., width)."""
        scaled: torch.Tensor = self.gamma * self.layer(values)
        return scaled


def load(model: str, device: str) -> DiTTransformer2DModel:
    """Load a DiT in float32 and frozen, with the layers of `adapt`.

    Args:
        model: hub id, folder or demo/dit.
        device: torch device.
    """
    if torch.device(device).type == "cuda":  # as the released code
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    network = stable_diffusion.load_part(DiTTransformer2DModel, model, "transformer", "cpu", torch.float32)
    return adapt(network).to(device).requires_grad_(False)


def share_embeddings(network: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Let all blocks use the embeddings of class and timestep of the first one.

    DiT has one embedding of each; diffusers stores a copy in every block, and training would change each of them alone.
    """
    first, *others = network.transformer_blocks
    for block in others:
        block.norm1.emb = first.norm1.emb
    return network


def adapt(network: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Share the embeddings between the blocks (`share_embeddings`), and add DiffFit's factors.

    The first half of the blocks gets the factors that Minimax Diffusion's code has: of queries, keys, values and
    projection, of the attention branch and of the MLP branch. At one they change nothing.
    """
    blocks = share_embeddings(network).transformer_blocks
    width = network.inner_dim
    for block in blocks[: len(blocks) // 2]:
        for name in ("to_q", "to_k", "to_v"):
            setattr(block.attn1, name, Scaled(getattr(block.attn1, name), width))
        block.attn1.to_out[0] = Scaled(Scaled(block.attn1.to_out[0], width), width)  # projection, then branch
        block.ff.net[2] = Scaled(block.ff.net[2], width)
    return network


def trained_by_difffit(network: nn.Module) -> list[str]:
    """List the weights that DiffFit trains: biases, factors and the embedding of classes."""
    return [
        name
        for name, _ in network.named_parameters()
        if name.endswith((".bias", ".gamma")) or ".class_embedder." in name
    ]


@torch.no_grad()
def set_weights(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Replace some weights, by their names.

    Raises:
        KeyError: the network has no weight of a name.
    """
    own = dict(network.named_parameters())
    for name, value in weights.items():
        own[name].copy_(value)


def load_schedule(model: str) -> DDPMScheduler:
    """Load the noise schedule of a DiT with its learned variance, and with the timesteps of OpenAI's respacing."""
    return DDPMScheduler.from_pretrained(
        folder(model),
        **pinned(model),
        subfolder="scheduler",
        variance_type="learned_range",
        timestep_spacing="linspace",
        clip_sample=False,
    )


@torch.no_grad()
def encode_views(vae: AutoencoderKL, pixels: Pixels, mirrored: bool) -> npt.NDArray[np.float16]:
    """Encode images (n, height, width, 3), with `mirrored` also their mirrored views: (n, views, 2c, h, w) float16."""
    views = [stable_diffusion.encode(vae, pixels, flip) for flip in (False, True)[: 1 + mirrored]]
    with np.errstate(over="ignore"):  # infinite in float16: not finite
        return torch.stack(views, dim=1).cpu().numpy().astype(np.float16)


class Diffusion:
    """The noise of every timestep, and what follows from it.

    Args:
        schedule: whose `betas` are the variances of the noise that each timestep adds.
        device: of the tensors.
    """

    def __init__(self, schedule: DDPMScheduler, device: torch.device) -> None:
        betas = schedule.betas.double()
        kept = torch.cumprod(1 - betas, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        posterior = betas * (1 - before) / (1 - kept)
        self.timesteps = len(betas)

        def row(values: torch.Tensor) -> torch.Tensor:
            return values.float().to(device)

        self.signal, self.noise = row(kept.sqrt()), row((1 - kept).sqrt())
        self.of_clean = row(betas * before.sqrt() / (1 - kept))
        self.of_noisy = row((1 - before) * (1 - betas).sqrt() / (1 - kept))
        # The posterior of the first timestep has no variance; its logarithm is that of the second.
        self.least_log_variance = row(torch.cat([posterior[1:2], posterior[1:]]).log())
        self.most_log_variance = row(betas.log())

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return noisy latents: (n, c, h, w) of clean ones and noise, at (n,) timesteps."""
        return _at(self.signal, timesteps) * clean + _at(self.noise, timesteps) * noise

    def predict_clean(self, noisy: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the clean latents that follow from predicted noise, (n, c, h, w)."""
        return (noisy - _at(self.noise, timesteps) * noise) / _at(self.signal, timesteps)

    def losses(
        self,
        output: torch.Tensor,
        clean: torch.Tensor,
        noisy: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the loss of each row: mean squared error of the noise, plus the bound of `bound` for the variance.

        Args:
            output: (n, 2c, h, w) of the DiT: predicted noise, and where the variance lies between its limits.
            clean, noisy, noise: (n, c, h, w).
            timesteps: (n,).

        Returns:
            (n,).
        """
        predicted, between = output.chunk(2, dim=1)
        error = (predicted - noise).square().flatten(1).mean(dim=1)
        return error + self.bound(predicted.detach(), between, clean, noisy, timesteps)

    def bound(
        self,
        predicted: torch.Tensor,
        between: torch.Tensor,
        clean: torch.Tensor,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the term of the variational lower bound at each row's timestep, in bits per number.

        At timestep 0 it is the negative log-likelihood of the clean latents as 256 levels of [-1, 1], later the
        divergence of the predicted Gaussian from the posterior.

        Args:
            predicted: noise, (n, c, h, w).
            between: -1 for the least variance, 1 for the most; not limited to these.
            clean, noisy: (n, c, h, w).
            timesteps: (n,).

        Returns:
            (n,).
        """
        guess = self.predict_clean(noisy, predicted, timesteps)
        mean = _at(self.of_clean, timesteps) * clean + _at(self.of_noisy, timesteps) * noisy
        model_mean = _at(self.of_clean, timesteps) * guess + _at(self.of_noisy, timesteps) * noisy
        least, most = _at(self.least_log_variance, timesteps), _at(self.most_log_variance, timesteps)
        share = (between + 1) / 2
        log_variance = share * most + (1 - share) * least
        divergence = 0.5 * (
            log_variance
            - least
            - 1
            + torch.exp(least - log_variance)
            + (mean - model_mean).square() * torch.exp(-log_variance)
        )
        likelihood = log_likelihood(clean, model_mean, 0.5 * log_variance)
        is_first = (timesteps == 0).view(-1, 1, 1, 1)
        return torch.where(is_first, -likelihood, divergence).flatten(1).mean(dim=1) / _LOG_2


def log_likelihood(values: torch.Tensor, means: torch.Tensor, log_scales: torch.Tensor) -> torch.Tensor:
    """Compute the log-likelihood of values as 256 levels of [-1, 1] under Gaussians; the outer levels are open.

    Args:
        values, means, log_scales: of one shape; `log_scales` are logarithms of standard deviations.
    """
    scale = torch.exp(-log_scales)
    above = torch.special.ndtr(scale * (values - means + _HALF_LEVEL))
    below = torch.special.ndtr(scale * (values - means - _HALF_LEVEL))
    inside = torch.where(values > 0.999, 1 - below, above - below)
    return torch.where(values < -0.999, above, inside).clamp(min=_LEAST).log()


def _at(values: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return values[timesteps].view(-1, 1, 1, 1)


@torch.no_grad()
def denoise(
    network: Any,
    scheduler: Any,
    classes: Sequence[int],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
    guided_channels: int,
) -> torch.Tensor:
    """Generate latents of some classes from pure noise, with classifier-free guidance.

    Args:
        network: a DiT.
        scheduler: that steps from one timestep to the next, as `load_schedule` returns it; it is not changed.
        classes: n of the DiT's numbers of classes.
        seeds: n seeds, one for the noise of each image.
        steps: denoising steps.
        guidance_scale: 1: without guidance.
        guided_channels: channels of the noise that are guided; the others are those of the class.

    Returns:
        (n, c, h, w), of which none depends on the others (up to the rounding of a batched matrix product).
    """
    scheduler, config, device = copy.deepcopy(scheduler), network.config, next(network.parameters()).device
    shape = (len(classes), config.in_channels, config.sample_size, config.sample_size)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # of the CPU: the same noise on a GPU
    latents: torch.Tensor = randn_tensor(shape, generator=generators, device=device)
    wanted = torch.tensor(list(classes), device=device)
    is_guided = guidance_scale != 1
    numbers = torch.cat([wanted, torch.full_like(wanted, config.num_embeds_ada_norm)]) if is_guided else wanted
    learns_variance = getattr(scheduler, "variance_type", "") == "learned_range"
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        noisy = torch.cat([latents, latents]) if is_guided else latents
        output = network(noisy, timestep.to(device).expand(len(noisy)), numbers, return_dict=False)[0]
        if is_guided:
            own, none = output.chunk(2)
            guided = none[:, :guided_channels] + guidance_scale * (own - none)[:, :guided_channels]
            output = torch.cat([guided, own[:, guided_channels:]], dim=1)
        output = output if learns_variance else output[:, : config.in_channels]
        latents = scheduler.step(output, timestep, latents, generator=generators).prev_sample
    return latents


class Sampler:
    """A DiT with its VAE and its noise schedule, which generates images of its classes.

    Args:
        model: hub id, folder or demo/dit.
        device: torch device.
        batch_size: images at once; with guidance the DiT's batch is twice as large.
        options: of `denoise`.
    """

    def __init__(self, model: str, device: str, batch_size: int, **options: Any) -> None:
        self.network, self.scheduler = load(model, device), load_schedule(model)
        self.vae = stable_diffusion.load_vae(model, device)
        self.batches, self.options = Batches(batch_size, "generate.batch_size"), options

    def __call__(self, classes: Sequence[int], seeds: Sequence[int]) -> "stable_diffusion.Pictures":
        """Generate an image for each pair of a class and a seed, in their order."""

        def call(rows: range, size: int) -> torch.Tensor:
            batch = stable_diffusion.padded(rows, size)
            chosen, own = [classes[row] for row in batch], [seeds[row] for row in batch]
            return denoise(self.network, self.scheduler, chosen, own, **self.options)[: len(rows)].cpu()

        latents = torch.cat(list(self.batches.run(len(classes), call)))
        return stable_diffusion.decode(self.vae, latents, self.batches)
