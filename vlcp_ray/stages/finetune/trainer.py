"""Fine-tune the UNet on PAIRS, step by step, on one device or as one rank of several."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vlcp_ray import images, schemas
from vlcp_ray.models import pretrained, stable_diffusion
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.finetune import Finetune
from vlcp_ray.stages.finetune.batches import Positions, RankBatch, Schedule
from vlcp_ray.stages.generate import Generate

Fetch = Callable[[Positions], pa.Table]

_DTYPES: Final = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics at the end of an epoch.

    Args:
        step, epoch, images: how many optimiser steps, epochs and images are done, over all ranks.
        loss: mean over the epoch's images, over all ranks.
        images_per_second: of all ranks together, since the previous report.
        learning_rate: of the last step.
        gradient_norm: mean over the epoch's steps, before clipping.
    """

    step: int
    epoch: int
    images: int
    loss: float
    images_per_second: float
    learning_rate: float
    gradient_norm: float


class Trainer:
    """The UNet, its moving average (EMA) and its optimiser; every rank has one and steps with its part of the batch."""

    def __init__(
        self,
        settings: Finetune,
        base_model: str,
        seed: int,
        resolution: int,
        batch_per_device: int,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda unet: unet,
    ) -> None:
        """Load the UNet in float32 and the frozen text encoder.

        Args:
            settings: of the stage.
            base_model: a hub id, a folder or demo/stable_diffusion.
            seed: of flips, timesteps and noise.
            resolution: side in pixels of the training images, for `validate`.
            batch_per_device: images in one forward pass.
            device: torch device of this rank.
            rank, world_size: the number of this rank, and how many ranks there are.
            wrap: wraps the UNet for distributed training, e.g. `ray.train.torch.prepare_model`.

        Raises:
            ValueError: the model does not predict the noise, or mixed_precision is fp16 on a CPU.
        """
        self.settings, self.base_model, self.seed, self.resolution = settings, base_model, seed, resolution
        self.batch_per_device, self.rank, self.world_size = batch_per_device, rank, world_size
        self.device = torch.device(device)
        self.dtype = _DTYPES[settings.mixed_precision]
        if self.dtype == torch.float16 and self.device.type == "cpu":
            raise ValueError("finetune.mixed_precision: fp16 needs a GPU; set it to no")
        mixed = self.dtype != torch.float32
        self.autocast = torch.autocast(self.device.type, self.dtype) if mixed else nullcontext()
        self.scheduler = stable_diffusion.load_noise_schedule(base_model)
        self.scaling_factor = pretrained.scaling_factor(base_model)
        self.tokenizer, self.text_encoder = stable_diffusion.load_text(base_model, device, self.dtype)
        self.unet = stable_diffusion.load_unet(base_model, device).train().requires_grad_(True)
        if settings.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.model: Any = wrap(self.unet)
        self.ema = EMAModel(self.unet.parameters(), decay=settings.ema_decay, foreach=True)
        rate, decay = settings.learning_rate, settings.weight_decay
        # torch's default betas (0.9, 0.999) and eps 1e-8 are those of the recipe
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=rate, weight_decay=decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.steps_done = 0
        self.norms = torch.zeros(2, device=self.device)  # sum of the gradient norms since `pop_mean_norm`, their number

    def step(self, table: pa.Table, batch: RankBatch) -> float:
        """Take one optimiser step on the PAIRS rows of `batch`.

        Returns:
            This rank's share of the batch's mean loss: the shares of all ranks add up to it.
        """
        loss = self.accumulate(table, batch)
        self.update()
        return loss

    def accumulate(self, table: pa.Table, batch: RankBatch) -> float:
        """Add the gradient of `batch` to the UNet's, `batch_per_device` rows at a time; returns the same as `step`."""
        share = torch.zeros((), device=self.device)
        for start in range(0, len(table), self.batch_per_device):
            stop = start + self.batch_per_device
            more_follow = stop < len(table) and isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if more_follow else nullcontext():
                rows = table.slice(start, self.batch_per_device)
                loss = self._row_losses(rows, batch.epochs[start:stop]).sum() * batch.weight
                torch.autograd.backward(self.scaler.scale(loss))
            share += loss.detach()
        return share.item() / self.world_size

    def update(self) -> None:
        """Clip the gradient, step the optimiser and the moving average.

        Raises:
            ValueError: the gradient is not finite. In fp16 the step is skipped instead, because the loss scale was too
                large.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.unet.parameters(), self.settings.max_grad_norm)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise ValueError(f"finetune.learning_rate: training diverged at step {self.steps_done + 1}; lower it")
        # In fp16 a skipped step has no finite norm. Nothing here waits for the device.
        self.norms += torch.stack([norm, torch.ones_like(norm)]).where(torch.isfinite(norm), 0.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.unet.parameters())
        self.steps_done += 1

    def pop_mean_norm(self) -> float:
        """Return the mean gradient norm, before clipping, over the steps since the last call."""
        total, count = self.norms.tolist()
        self.norms.zero_()
        return float(total / max(count, 1.0))

    def _row_losses(self, table: pa.Table, epochs: Positions) -> torch.Tensor:
        """Compute the mean squared error of the predicted noise for each row: (n,)."""
        latents, noise, timesteps = (sampled.to(self.device) for sampled in self._sample_inputs(table, epochs))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        hidden = stable_diffusion.embed_captions(self.tokenizer, self.text_encoder, table["caption"].to_pylist())
        with self.autocast:
            predicted = self.model(noisy, timesteps, hidden, return_dict=False)[0]
        return nn.functional.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3))

    def _sample_inputs(self, table: pa.Table, epochs: Positions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sample latents (n, c, h, w), noise (n, c, h, w) and timesteps (n,).

        Those of a row are a function of seed, epoch and image_id.
        """
        moments = schemas.tensors(table["train_moments"])  # (n, views, 2c, h, w)
        n, _, doubled, height, width = moments.shape
        normal = torch.empty(n, 2, doubled // 2, height, width)
        integers = torch.empty(n, 2, dtype=torch.int64)  # for the timestep and the flip
        generator = torch.Generator()  # on the CPU, so that the numbers are the same on a GPU
        for row, (epoch, image_id) in enumerate(zip(epochs, table["image_id"].to_pylist(), strict=True)):
            generator.manual_seed(seed_for(self.seed, "finetune", int(epoch), image_id))
            integers[row].random_(2**31, generator=generator)
            normal[row].normal_(generator=generator)
        timesteps = integers[:, 0] % self.scheduler.config.num_train_timesteps
        flips = (integers[:, 1] % 2 if self.settings.random_flip else torch.zeros(n, dtype=torch.int64)).numpy()
        row_moments = torch.from_numpy(moments[np.arange(n), flips].astype(np.float32))
        latents = stable_diffusion.sample(row_moments, normal[:, 0]) * self.scaling_factor
        return latents, normal[:, 1], timesteps

    def validate(self, prompts: Sequence[str]) -> list[bytes]:
        """Generate a PNG for each prompt from pure noise with the EMA weights, without a negative prompt."""
        sampling = Generate(
            strength=1,
            guidance_scale=self.settings.validation_guidance_scale,
            num_inference_steps=self.settings.validation_steps,
            negative_prompt="",
        )
        pipeline = stable_diffusion.load_pipeline(self.base_model, str(self.device), torch.float32, self.unet)
        zeros = np.zeros((len(prompts), *pretrained.latent_shape(self.base_model, self.resolution)), np.float32)
        seeds = [seed_for(self.seed, "validate", prompt) for prompt in prompts]
        with stable_diffusion.use_ema_weights(self.unet, self.ema), self.autocast:
            generated = stable_diffusion.img2img(pipeline, sampling, zeros, prompts, seeds, self.batch_per_device)
        return [images.encode_png(pixels) for pixels in generated]

    def export(self, target: str | Path) -> None:
        """Write the whole pipeline with the EMA weights of the UNet as a diffusers folder of safetensors files."""
        with stable_diffusion.use_ema_weights(self.unet, self.ema):
            stable_diffusion.save_pipeline(self.base_model, self.unet, target)

    def save(self, target: str | Path) -> None:
        """Write a checkpoint from which `load` resumes exactly: unet.safetensors, ema.safetensors, optimizer.pt."""
        weights = dict(self.unet.named_parameters())
        save_file({name: value.detach() for name, value in weights.items()}, Path(target, "unet.safetensors"))
        save_file(dict(zip(weights, self.ema.shadow_params, strict=True)), Path(target, "ema.safetensors"))
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        torch.save(state | {"steps_done": self.steps_done}, Path(target, "optimizer.pt"))

    def load(self, source: str | Path) -> None:
        """Read a checkpoint that `save` has written; the next step is the one after it."""
        self.unet.load_state_dict(load_file(Path(source, "unet.safetensors")), strict=True)
        ema_weights = load_file(Path(source, "ema.safetensors"), device=str(self.device))
        self.ema.shadow_params = [ema_weights[name] for name, _ in self.unet.named_parameters()]
        state = torch.load(Path(source, "optimizer.pt"), map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.steps_done = self.ema.optimization_step = state["steps_done"]


def train(trainer: Trainer, schedule: Schedule, fetch: Fetch, report: Callable[[EpochMetrics], None]) -> None:
    """Take the remaining optimiser steps and report at the end of every epoch.

    Args:
        trainer: new, or loaded from the checkpoint of an earlier run.
        schedule: the same on every rank.
        fetch: returns the PAIRS rows at the given positions, in their order. It is called one step ahead, from one
            other thread.
        report: called on every rank after the same steps; a checkpoint saved there resumes exactly.
    """
    loss, reported, clock = 0.0, schedule.images_after(trainer.steps_done), time.perf_counter()
    for batch, table in _prefetch(trainer, schedule, fetch):
        previous = trainer.steps_done
        share = trainer.step(table, batch)
        step = trainer.steps_done
        seen = schedule.images_after(step)
        loss += share * (seen - schedule.images_after(previous))
        if schedule.epochs_after(step) > schedule.epochs_after(previous):
            count = seen - reported
            report(
                EpochMetrics(
                    step=step,
                    epoch=schedule.epochs_after(step),
                    images=seen,
                    loss=_sum_over_ranks(loss, trainer.device) / count,
                    images_per_second=count / (time.perf_counter() - clock),
                    learning_rate=trainer.optimizer.param_groups[0]["lr"],
                    gradient_norm=trainer.pop_mean_norm(),
                )
            )
            loss, reported, clock = 0.0, seen, time.perf_counter()


def _prefetch(trainer: Trainer, schedule: Schedule, fetch: Fetch) -> Iterator[tuple[RankBatch, pa.Table]]:
    """Yield this rank's batches of the remaining steps with their rows; the next rows are read during each step."""
    steps = range(trainer.steps_done, schedule.steps)
    batches = (schedule.rank_batch(step, trainer.rank, trainer.world_size) for step in steps)
    ready: tuple[RankBatch, Future[pa.Table]] | None = None
    with ThreadPoolExecutor(1) as reader:
        for batch in chain(batches, [None]):
            following = (batch, reader.submit(fetch, batch.positions)) if batch else None
            if ready:
                yield ready[0], ready[1].result()
            ready = following


def _sum_over_ranks(value: float, device: torch.device) -> float:
    if not distributed.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return total.item()
