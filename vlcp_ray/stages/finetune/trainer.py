"""Fine-tune the UNet on PAIRS, step by step, on one device or as one rank of several."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from vlcp_ray import images, schemas
from vlcp_ray.models import lora, pretrained, stable_diffusion
from vlcp_ray.models.batches import Batches
from vlcp_ray.scale import FinetunePool
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.finetune import Finetune
from vlcp_ray.stages.finetune.batches import Positions, RankBatch
from vlcp_ray.stages.finetune.optimizer import MovingAverage
from vlcp_ray.stages.finetune.training import RankInputs, RankTrainer, sample_latents, sample_noise
from vlcp_ray.stages.generate import Generate

_DTYPES: Final = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Inputs(RankInputs):
    """Latents and captions of an optimiser step, on the CPU; pinned where it goes to a GPU.

    Args:
        latents, noise: (n, c, h, w).
        timesteps: (n,).
        token_ids: (n, tokenizers, 77).
        weight, images: see `RankInputs`.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    token_ids: torch.Tensor
    weight: float
    images: int

    def rows(self, start: int, stop: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Copy some rows to a device, which is not waited for."""
        tensors = (self.latents, self.noise, self.timesteps, self.token_ids)
        return tuple(tensor[start:stop].to(device, non_blocking=True) for tensor in tensors)


class Trainer(RankTrainer[Inputs]):
    """The UNet of a Stable Diffusion, which learns to predict the noise of PAIRS, or its velocity."""

    def __init__(
        self,
        settings: Finetune,
        base_model: str,
        seed: int,
        resolution: int,
        pool: FinetunePool,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda unet: unet,
        class_names: Sequence[str] = (),
    ) -> None:
        """Load the UNet in float32 and the frozen text encoders.

        Args:
            settings: of the stage.
            base_model: a hub id, a folder or demo/stable_diffusion; of any family.
            seed: of flips, timesteps and noise.
            resolution: side in pixels of the training images, for `validate` and for the conditions of XL.
            pool, device, rank, world_size, wrap: as in `RankTrainer`.
            class_names: of which the first are the prompts of validation images.

        Raises:
            ValueError: the model predicts neither noise nor velocity, or mixed_precision is fp16 on a CPU.
        """
        self.settings, self.base_model, self.seed, self.resolution = settings, base_model, seed, resolution
        self.prompts = class_names[: settings.validation_classes]
        place = torch.device(device)
        self.dtype = _DTYPES[settings.mixed_precision]
        if self.dtype == torch.float16 and place.type == "cpu":
            raise ValueError("finetune.mixed_precision: fp16 needs a GPU; set it to no")
        mixed = self.dtype != torch.float32
        # Without a cache: each weight is used once, and the cache would hold all weights in half precision.
        self.autocast = torch.autocast(place.type, self.dtype, cache_enabled=False) if mixed else nullcontext()
        self.scheduler = stable_diffusion.load_noise_schedule(base_model)
        self.scaling_factor = pretrained.scaling_factor(base_model)
        self.text = stable_diffusion.load_text(base_model, device, self.dtype)
        self.unet = self._load_unet(device)
        if pool.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        super().__init__(
            self.unet,
            "finetune",
            settings.learning_rate,
            settings.weight_decay,
            settings.max_grad_norm,
            MovingAverage(self.unet, settings.ema_decay, place if pool.average_on == "gpu" else torch.device("cpu")),
            pool,
            place,
            rank,
            world_size,
            wrap,
            uses_scaler=self.dtype == torch.float16,
        )

    def _load_unet(self, device: str) -> Any:
        """Load the UNet, to train all weights in float32, or only LoRA's; the others then have the lower precision."""
        rank = self.settings.lora_rank
        if not rank:
            return stable_diffusion.load_unet(self.base_model, device).train().requires_grad_(True)
        unet = stable_diffusion.load_unet(self.base_model, "cpu")
        unet = lora.add_matrices(unet, rank, seed_for(self.seed, "lora")).train()
        for weight in unet.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.to(self.dtype)
        return unet.to(device)

    def prepare(self, table: pa.Table, batch: RankBatch) -> Inputs:
        """Sample and tokenise the PAIRS rows of `batch`; may run in another thread than `step`."""
        token_ids = self.text.tokenize(table["caption"].to_pylist())
        tensors = [*self._sample_inputs(table, batch.epochs), token_ids]
        if self.device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        latents, noise, timesteps, token_ids = tensors
        return Inputs(latents, noise, timesteps, token_ids, batch.weight, batch.images)

    def accumulate_rows(self, inputs: Inputs) -> torch.Tensor:
        """See `RankTrainer`."""
        share = torch.zeros((), device=self.device)
        n = len(inputs.timesteps)
        for start in range(0, n, self.batch_per_device):
            stop = start + self.batch_per_device
            is_last = stop >= n
            with self.collecting(is_last):
                predicted, target = self._predict(inputs, start, stop, is_last)
                losses = nn.functional.mse_loss(predicted.float(), target, reduction="none").mean(dim=(1, 2, 3))
                if gamma := self.settings.snr_gamma:
                    timesteps = inputs.timesteps[start:stop].to(self.device, non_blocking=True)
                    losses = losses * stable_diffusion.min_snr_weights(self.scheduler, timesteps, gamma)
                loss = losses.sum() * inputs.weight
                self.backward(loss)
            share += loss.detach()
        return share / self.world_size

    def touch(self) -> torch.Tensor:
        """See `RankTrainer`."""
        shape = pretrained.latent_shape(self.base_model, self.resolution)
        embedded = self.text.embed(self.text.tokenize([""]).to(self.device))
        inputs = (
            torch.zeros(1, *shape, device=self.device),
            torch.zeros(1, dtype=torch.long, device=self.device),
            embedded.hidden,
        )
        with self.autocast:
            conditions = embedded.conditions(self.resolution)
            predicted: torch.Tensor = self.model(*inputs, added_cond_kwargs=conditions, return_dict=False)[0]
        return predicted

    def _predict(self, inputs: Inputs, start: int, stop: int, is_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prediction of some rows and what it should be, (n, c, h, w) each."""
        latents, noise, timesteps, token_ids = inputs.rows(start, stop, self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        embedded = self.text.embed(token_ids)
        conditions = embedded.conditions(self.resolution)
        with self.autocast:
            predicted = self.forward(is_last, noisy, timesteps, embedded.hidden, added_cond_kwargs=conditions)
        return predicted, stable_diffusion.prediction_target(self.scheduler, latents, noise, timesteps)

    def _sample_inputs(self, table: pa.Table, epochs: Positions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sample latents (n, c, h, w), noise (n, c, h, w) and timesteps (n,).

        Those of a row are a function of seed, epoch and image_id.
        """
        moments = schemas.tensors(table["train_moments"])  # (n, views, 2c, h, w)
        shape = (moments.shape[2] // 2, *moments.shape[3:])
        integers, normal = sample_noise(table["image_id"].to_pylist(), epochs, self.seed, "finetune", shape, 2)
        timesteps = integers[:, 0] % self.scheduler.config.num_train_timesteps
        flips = integers[:, 1] % 2 if self.settings.random_flip else torch.zeros(len(moments), dtype=torch.int64)
        return sample_latents(moments, flips, normal[:, 0], self.scaling_factor), normal[:, 1], timesteps

    def validate(self, epoch: int) -> list[bytes]:
        """Generate a PNG for each of the first classes from pure noise with the EMA weights, every few epochs.

        An image whose numbers are not finite is black: nothing is computed again in float32, which the memory beside
        the training may not have.
        """
        if epoch % self.settings.validation_epochs:
            return []
        prompts = self.prompts
        sampling = Generate(
            strength=1,
            guidance_scale=self.settings.validation_guidance_scale,
            num_inference_steps=self.settings.validation_steps,
            negative_prompt="",
        )
        pipeline = stable_diffusion.load_pipeline(self.base_model, str(self.device), self.dtype, self.unet, self.text)
        zeros = np.zeros((len(prompts), *pretrained.latent_shape(self.base_model, self.resolution)), np.float32)
        seeds = [seed_for(self.seed, "validate", prompt) for prompt in prompts]
        with self.ema.applied(), self.autocast:
            batches = Batches(self.batch_per_device, "finetune.batch_size")
            generated = stable_diffusion.img2img(pipeline, sampling, zeros, prompts, seeds, batches, recomputes=False)
        return [images.encode_png(pixels) for pixels in generated.pixels]

    def export(self, target: str | Path) -> None:
        """Write the whole pipeline with the EMA weights of the UNet as a diffusers folder of safetensors files."""
        with self.ema.applied():
            unet = lora.merge(self.unet, self.base_model) if self.settings.lora_rank else self.unet
            stable_diffusion.save_pipeline(self.base_model, unet, target)
