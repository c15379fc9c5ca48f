"""Knows how the UNet learns the pairs, step by step, on one device or as one rank of many (METHOD 2.2)."""

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

from vlcp_ray import config, images, schemas
from vlcp_ray.models import diffusion, shapes
from vlcp_ray.schedule import Part, Positions, Schedule
from vlcp_ray.seeds import seed_for

Fetch = Callable[[Positions], pa.Table]

_DTYPES: Final = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Progress:
    """Where a training is, at the end of an epoch.

    The loss is the mean over the epoch and all ranks, the norm that of the gradient before it was clipped, a mean too.
    """

    step: int
    epoch: int
    images: int
    loss: float
    images_per_second: float
    learning_rate: float
    gradient_norm: float


class Finetune:
    """The UNet, its moving average and its optimiser. Every rank holds one and steps with its part of the batch."""

    def __init__(
        self,
        settings: config.Finetune,
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
            settings, base_model: the recipe, and a hub id, a folder or demo/stable_diffusion.
            seed: of flips, timesteps and noise.
            resolution: side in pixels of the training images, for `validate`.
            batch_per_device: images in one forward pass.
            device, rank, world_size: where this rank computes, its number, and how many there are.
            wrap: makes the UNet a distributed one, e.g. `ray.train.torch.prepare_model`.

        Raises:
            ValueError: the model is not one that predicts the noise, or the precision does not fit the device.
        """
        self.settings, self.base_model, self.seed, self.resolution = settings, base_model, seed, resolution
        self.batch_per_device, self.rank, self.world_size = batch_per_device, rank, world_size
        self.device = torch.device(device)
        self.dtype = _DTYPES[settings.mixed_precision]
        if self.dtype == torch.float16 and self.device.type == "cpu":
            raise ValueError("finetune.mixed_precision: fp16 needs a GPU; set it to no")
        mixed = self.dtype != torch.float32
        self.autocast = torch.autocast(self.device.type, self.dtype) if mixed else nullcontext()
        self.scheduler = diffusion.load_noise_schedule(base_model)
        self.scaling_factor = shapes.scaling_factor(base_model)
        self.tokenizer, self.text_encoder = diffusion.load_text(base_model, device, self.dtype)
        self.unet = diffusion.load_unet(base_model, device).train().requires_grad_(True)
        if settings.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.model: Any = wrap(self.unet)
        self.ema = EMAModel(self.unet.parameters(), decay=settings.ema_decay, foreach=True)
        rate, decay = settings.learning_rate, settings.weight_decay
        # betas (0.9, 0.999) and eps 1e-8 are the recipe's and torch's
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=rate, weight_decay=decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.steps_done = 0
        self.norms = torch.zeros(2, device=self.device)  # sum and number of the gradients' since `mean_norm`

    def step(self, table: pa.Table, part: Part) -> float:
        """One optimiser step on the PAIRS rows of `part`. Returns this rank's share of the batch's mean loss."""
        loss = self.accumulate(table, part)
        self.update()
        return loss

    def accumulate(self, table: pa.Table, part: Part) -> float:
        """Add the gradient of `part` to the UNet's, `batch_per_device` rows at a time."""
        share = torch.zeros((), device=self.device)
        for start in range(0, len(table), self.batch_per_device):
            stop = start + self.batch_per_device
            waits = stop < len(table) and isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if waits else nullcontext():
                rows = table.slice(start, self.batch_per_device)
                loss = self._losses(rows, part.epochs[start:stop]).sum() * part.weight
                torch.autograd.backward(self.scaler.scale(loss))
            share += loss.detach()
        return share.item() / self.world_size

    def update(self) -> None:
        """Clip the gradient, step the optimiser and the moving average.

        Raises:
            ValueError: the gradient is not finite (in fp16 such a step is skipped: the loss scale was too large).
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.unet.parameters(), self.settings.max_grad_norm)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise ValueError(f"finetune.learning_rate: training diverged at step {self.steps_done + 1}; lower it")
        # In fp16 a step that is skipped has none. Nothing here waits for the device.
        self.norms += torch.stack([norm, torch.ones_like(norm)]).where(torch.isfinite(norm), 0.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.unet.parameters())
        self.steps_done += 1

    def mean_norm(self) -> float:
        """The mean norm of the gradient, before clipping, over the steps since it was asked for last."""
        total, count = self.norms.tolist()
        self.norms.zero_()
        return float(total / max(count, 1.0))

    def _losses(self, table: pa.Table, epochs: Positions) -> torch.Tensor:
        """The mean squared error of the predicted noise, one a row."""
        latents, noise, timesteps = (drawn.to(self.device) for drawn in self._draws(table, epochs))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        hidden = diffusion.embed_captions(self.tokenizer, self.text_encoder, table["caption"].to_pylist())
        with self.autocast:
            predicted = self.model(noisy, timesteps, hidden, return_dict=False)[0]
        return nn.functional.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3))

    def _draws(self, table: pa.Table, epochs: Positions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, noise (n, c, h, w) and timesteps (n,): a function of seed, epoch and image_id for every row."""
        moments = schemas.tensors(table["train_moments"])  # (n, views, 2c, h, w)
        n, _, doubled, height, width = moments.shape
        normal = torch.empty(n, 2, doubled // 2, height, width)
        whole = torch.empty(n, 2, dtype=torch.int64)
        generator = torch.Generator()  # on the CPU, so that a GPU sees the same draws
        for row, (epoch, image_id) in enumerate(zip(epochs, table["image_id"].to_pylist(), strict=True)):
            generator.manual_seed(seed_for(self.seed, "finetune", int(epoch), image_id))
            whole[row].random_(2**31, generator=generator)
            normal[row].normal_(generator=generator)
        timesteps = whole[:, 0] % self.scheduler.config.num_train_timesteps
        flips = (whole[:, 1] % 2 if self.settings.random_flip else torch.zeros(n, dtype=torch.int64)).numpy()
        chosen = torch.from_numpy(moments[np.arange(n), flips].astype(np.float32))
        latents = diffusion.sample(chosen, normal[:, 0]) * self.scaling_factor
        return latents, normal[:, 1], timesteps

    def validate(self, prompts: Sequence[str]) -> list[bytes]:
        """A PNG for each prompt, drawn from noise with the averaged weights: 20 steps, guidance 7.5."""
        sampling = config.Generate(strength=1, guidance_scale=7.5, num_inference_steps=20, negative_prompt="")
        pipeline = diffusion.load_pipeline(self.base_model, str(self.device), torch.float32, self.unet)
        zeros = np.zeros((len(prompts), *shapes.latent_shape(self.base_model, self.resolution)), np.float32)
        seeds = [seed_for(self.seed, "validate", prompt) for prompt in prompts]
        with diffusion.averaged(self.unet, self.ema), self.autocast:
            drawn = diffusion.draw(pipeline, sampling, zeros, prompts, seeds, self.batch_per_device)
        return [images.encode_png(pixels) for pixels in drawn]

    def export(self, target: str | Path) -> None:
        """Write the whole pipeline with the averaged UNet as a diffusers folder of safetensors files."""
        with diffusion.averaged(self.unet, self.ema):
            diffusion.save_pipeline(self.base_model, self.unet, target)

    def save(self, target: str | Path) -> None:
        """Write all that the next step depends on: unet.safetensors, ema.safetensors, optimizer.pt."""
        weights = dict(self.unet.named_parameters())
        save_file({name: value.detach() for name, value in weights.items()}, Path(target, "unet.safetensors"))
        save_file(dict(zip(weights, self.ema.shadow_params, strict=True)), Path(target, "ema.safetensors"))
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        torch.save(state | {"steps_done": self.steps_done}, Path(target, "optimizer.pt"))

    def load(self, source: str | Path) -> None:
        """Read what `save` wrote; the next step is the one that would have followed."""
        self.unet.load_state_dict(load_file(Path(source, "unet.safetensors")), strict=True)
        averaged = load_file(Path(source, "ema.safetensors"), device=str(self.device))
        self.ema.shadow_params = [averaged[name] for name, _ in self.unet.named_parameters()]
        state = torch.load(Path(source, "optimizer.pt"), map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.steps_done = self.ema.optimization_step = state["steps_done"]


def train(learner: Finetune, schedule: Schedule, fetch: Fetch, report: Callable[[Progress], None]) -> None:
    """Take the steps that are left, and report whenever an epoch ends.

    Args:
        learner: new, or loaded from where an earlier run stopped.
        schedule: the same on every rank.
        fetch: PAIRS rows of the positions, in their order. It is called one step ahead, from one other thread.
        report: called on every rank after the same steps; a state saved there resumes exactly.
    """
    loss, since, clock = 0.0, schedule.images_after(learner.steps_done), time.perf_counter()
    for part, table in _ahead(learner, schedule, fetch):
        before, epoch = schedule.images_after(learner.steps_done), schedule.epochs_after(learner.steps_done)
        share = learner.step(table, part)
        seen, step = schedule.images_after(learner.steps_done), learner.steps_done
        loss += share * (seen - before)
        if schedule.epochs_after(step) > epoch:
            mean = _over_ranks(loss, learner.device) / (seen - since)
            speed = (seen - since) / (time.perf_counter() - clock)
            rate = learner.optimizer.param_groups[0]["lr"]
            report(Progress(step, schedule.epochs_after(step), seen, mean, speed, rate, learner.mean_norm()))
            loss, since, clock = 0.0, seen, time.perf_counter()


def _ahead(learner: Finetune, schedule: Schedule, fetch: Fetch) -> Iterator[tuple[Part, pa.Table]]:
    """The parts of the steps that are left, the next one's rows being read while this one computes."""
    steps = range(learner.steps_done, schedule.steps)
    parts = (schedule.part(step, learner.rank, learner.world_size) for step in steps)
    ready: tuple[Part, Future[pa.Table]] | None = None
    with ThreadPoolExecutor(1) as reader:
        for part in chain(parts, [None]):
            coming = (part, reader.submit(fetch, part.positions)) if part else None
            if ready:
                yield ready[0], ready[1].result()
            ready = coming


def _over_ranks(value: float, device: torch.device) -> float:
    if not distributed.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return total.item()
