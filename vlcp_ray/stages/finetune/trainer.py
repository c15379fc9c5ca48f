"""Fine-tune the UNet on PAIRS, step by step, on one device or as one rank of several."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vlcp_ray import images, schemas
from vlcp_ray.models import pretrained, stable_diffusion
from vlcp_ray.models.batches import Batches
from vlcp_ray.monitoring.memory import count_halving
from vlcp_ray.scale import FinetunePool
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.finetune import Finetune
from vlcp_ray.stages.finetune.batches import Positions, RankBatch, Schedule
from vlcp_ray.stages.finetune.optimizer import MovingAverage, make_optimizer
from vlcp_ray.stages.generate import Generate

Fetch = Callable[[Positions], pa.Table]

#: Steps whose inputs are read and prepared before they are needed.
_AHEAD: Final = 2
#: Steps from one question to the next whether a checkpoint is due; it is asked at the end of every epoch, too.
_AGREEMENT: Final = 25
TOO_LITTLE_MEMORY: Final = (
    "finetune.batch_size: not even one image fits into the memory of the GPU; in the section [finetune] of the scale "
    'file set gradient_checkpointing = true, average_on = "cpu" or optimizer = "adamw8bit", or give it larger GPUs'
)
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


class EpochSums:
    """Sums over an epoch, on the device: the losses of this rank's images, and the norms of the gradients."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.norm = torch.zeros(2, dtype=torch.float64, device=device)  # sum, number
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)  # step whose gradient was not finite, or 0

    def add_norm(self, norm: torch.Tensor, step: int, must_be_finite: bool) -> None:
        """Add the norm of a step's gradient; one that is not finite is left out and, where it must be, remembered."""
        finite = torch.isfinite(norm)
        self.norm += torch.stack([norm, torch.ones_like(norm)]).where(finite, 0.0)
        if must_be_finite:
            is_first = (self.first_bad == 0) & ~finite
            self.first_bad = torch.where(is_first, step, self.first_bad)

    def total(self) -> list[float]:
        """Add up the losses of all ranks. Returns sum of the losses, sum and number of the norms.

        Raises:
            ValueError: a gradient was not finite.
        """
        if first_bad := int(self.first_bad.item()):
            raise ValueError(f"finetune.learning_rate: training diverged at step {first_bad}; lower it")
        loss = self.loss.clone()
        if distributed.is_initialized():
            distributed.all_reduce(loss)
        values: list[float] = torch.cat([loss[None], self.norm]).tolist()
        return values

    def set(self, values: Sequence[float]) -> None:
        """Set the sums to what `total` has returned."""
        self.loss.fill_(values[0])
        self.norm.copy_(torch.tensor(values[1:], dtype=torch.float64))


@dataclass(frozen=True)
class Inputs:
    """What one rank needs for an optimiser step, on the CPU; pinned where it goes to a GPU.

    Args:
        latents, noise: (n, c, h, w).
        timesteps: (n,).
        token_ids: (n, 77).
        weight: of a row in the loss (see `RankBatch`).
        images: of the whole batch, over all ranks.
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


class Trainer:
    """The UNet, its moving average (EMA) and its optimiser; every rank has one and steps with its part of the batch.

    Within an epoch nothing waits for the device, unless the average is on the CPU: losses and norms are summed there.
    """

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
    ) -> None:
        """Load the UNet in float32 and the frozen text encoder.

        Args:
            settings: of the stage.
            base_model: a hub id, a folder or demo/stable_diffusion.
            seed: of flips, timesteps and noise.
            resolution: side in pixels of the training images, for `validate`.
            pool: images in one forward pass, and what saves memory.
            device: torch device of this rank.
            rank, world_size: the number of this rank, and how many ranks there are.
            wrap: wraps the UNet for distributed training, e.g. `ray.train.torch.prepare_model`.

        Raises:
            ValueError: the model does not predict the noise, or mixed_precision is fp16 on a CPU.
        """
        self.settings, self.base_model, self.seed, self.resolution = settings, base_model, seed, resolution
        self.batch_per_device, self.rank, self.world_size = pool.batch_size, rank, world_size
        self.device = torch.device(device)
        self.dtype = _DTYPES[settings.mixed_precision]
        if self.dtype == torch.float16 and self.device.type == "cpu":
            raise ValueError("finetune.mixed_precision: fp16 needs a GPU; set it to no")
        mixed = self.dtype != torch.float32
        # Without a cache: each weight is used once, and the cache would hold all weights in half precision.
        self.autocast = torch.autocast(self.device.type, self.dtype, cache_enabled=False) if mixed else nullcontext()
        self.scheduler = stable_diffusion.load_noise_schedule(base_model)
        self.scaling_factor = pretrained.scaling_factor(base_model)
        self.tokenizer, self.text_encoder = stable_diffusion.load_text(base_model, device, self.dtype)
        self.unet = stable_diffusion.load_unet(base_model, device).train().requires_grad_(True)
        if pool.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.model: Any = wrap(self.unet)
        self.ema = MovingAverage(
            self.unet, settings.ema_decay, self.device if pool.average_on == "gpu" else torch.device("cpu")
        )
        self.kind = pool.optimizer
        self.optimizer = make_optimizer(pool.optimizer, self.unet, settings.learning_rate, settings.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.steps_done = self.images_reported = 0
        self.sums = EpochSums(self.device)
        self._is_adding_up = False
        self._set_up_buckets()

    def prepare(self, table: pa.Table, batch: RankBatch) -> Inputs:
        """Sample and tokenise the PAIRS rows of `batch`; may run in another thread than `step`."""
        token_ids = stable_diffusion.tokenize_captions(self.tokenizer, table["caption"].to_pylist())
        tensors = [*self._sample_inputs(table, batch.epochs), token_ids]
        if self.device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        latents, noise, timesteps, token_ids = tensors
        return Inputs(latents, noise, timesteps, token_ids, batch.weight, batch.images)

    def step(self, inputs: Inputs) -> torch.Tensor:
        """Take one optimiser step.

        Returns:
            This rank's share of the batch's mean loss, on the device: the shares of all ranks add up to it.

        Raises:
            ValueError: not even one image fits into the memory of the device.
        """
        loss = self.accumulate(inputs)
        self.update()
        self.sums.loss += loss * inputs.images
        return loss

    def accumulate(self, inputs: Inputs) -> torch.Tensor:
        """Add the gradient of `inputs` to the UNet's, `batch_per_device` rows at a time; returns the same as `step`.

        Where the device has too little memory for so many rows, their number is halved: the gradient is the same.

        Raises:
            torch.OutOfMemoryError: the memory ended while the ranks were adding up their gradients, which cannot be
                repeated by one of them.
        """
        while True:
            try:
                return self._accumulate(inputs)
            except torch.OutOfMemoryError as error:
                if self._is_adding_up:
                    raise
                self._halve(error)

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        """Halve the rows of a forward pass, and drop the gradients so far."""
        if self.batch_per_device == 1:
            raise ValueError(TOO_LITTLE_MEMORY) from error
        self.batch_per_device //= 2
        self._clear_gradients()
        count_halving()

    def _accumulate(self, inputs: Inputs) -> torch.Tensor:
        share = torch.zeros((), device=self.device)
        n = len(inputs.timesteps)
        for start in range(0, n, self.batch_per_device):
            stop = start + self.batch_per_device
            is_distributed = isinstance(self.model, DistributedDataParallel)
            is_last = stop >= n
            with self.model.no_sync() if is_distributed and not is_last else nullcontext():
                predicted, noise = self._predict_noise(inputs, start, stop)
                self._is_adding_up = is_distributed and is_last  # DDP waits for this backward pass on all ranks
                losses = nn.functional.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3))
                loss = losses.sum() * inputs.weight
                torch.autograd.backward(self.scaler.scale(loss))
                self._is_adding_up = False
            share += loss.detach()
        return share / self.world_size

    def update(self) -> None:
        """Clip the gradient, step the optimiser and the moving average.

        In fp16 a step whose gradient is not finite is skipped, because the loss scale was too large.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.unet.parameters(), self.settings.max_grad_norm)
        self.sums.add_norm(norm, self.steps_done + 1, must_be_finite=not self.scaler.is_enabled())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._clear_gradients()
        self.ema.step()
        self.steps_done += 1

    def _set_up_buckets(self) -> None:
        """Let DDP set up its buckets, which it does anew in the second step: later the old ones would cost memory."""
        if not isinstance(self.model, DistributedDataParallel):
            return
        shape = pretrained.latent_shape(self.base_model, self.resolution)
        ids = torch.zeros(1, self.tokenizer.model_max_length, dtype=torch.long, device=self.device)
        inputs = (
            torch.zeros(1, *shape, device=self.device),
            torch.zeros(1, dtype=torch.long, device=self.device),
            stable_diffusion.embed_tokens(self.text_encoder, ids),
        )
        for _ in range(2):
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast:
                predicted = self.model(*inputs, return_dict=False)[0]
            torch.autograd.backward(predicted.float().sum() * 0)
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        """Set the gradients to zero: with DDP they are views into its buckets and stay so."""
        self.optimizer.zero_grad(set_to_none=not isinstance(self.model, DistributedDataParallel))

    def _predict_noise(self, inputs: Inputs, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the predicted noise of some rows and their noise, (n, c, h, w) each."""
        latents, noise, timesteps, token_ids = inputs.rows(start, stop, self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        hidden = stable_diffusion.embed_tokens(self.text_encoder, token_ids)
        with self.autocast:
            return self.model(noisy, timesteps, hidden, return_dict=False)[0], noise

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
        with self.ema.applied(), self.autocast:
            batches = Batches(self.batch_per_device, "finetune.batch_size")
            generated = stable_diffusion.img2img(pipeline, sampling, zeros, prompts, seeds, batches)
        return [images.encode_png(pixels) for pixels in generated.pixels]

    def export(self, target: str | Path) -> None:
        """Write the whole pipeline with the EMA weights of the UNet as a diffusers folder of safetensors files."""
        with self.ema.applied():
            stable_diffusion.save_pipeline(self.base_model, self.unet, target)

    def save(self, target: str | Path, totals: Sequence[float]) -> None:
        """Write a checkpoint from which `load` resumes exactly: unet.safetensors, ema.safetensors, optimizer.pt.

        Args:
            totals: of `EpochSums.total`.
        """
        weights = dict(self.unet.named_parameters())
        save_file({name: value.detach() for name, value in weights.items()}, Path(target, "unet.safetensors"))
        save_file(dict(zip(weights, self.ema.weights, strict=True)), Path(target, "ema.safetensors"))
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "kind": self.kind}
        state |= {"steps_done": self.steps_done, "images_reported": self.images_reported, "totals": list(totals)}
        torch.save(state, Path(target, "optimizer.pt"))

    def load(self, source: str | Path) -> None:
        """Read a checkpoint that `save` has written; the next step is the one after it.

        Raises:
            ValueError: it is of another optimiser.
        """
        self.unet.load_state_dict(load_file(Path(source, "unet.safetensors")), strict=True)
        averages = load_file(Path(source, "ema.safetensors"), device=str(self.ema.weights[0].device))
        self.ema.weights = [averages[name] for name, _ in self.unet.named_parameters()]
        state = torch.load(Path(source, "optimizer.pt"), map_location="cpu", weights_only=True)
        if state["kind"] != self.kind:
            raise ValueError(
                f"finetune.optimizer: the checkpoint is of {state['kind']}, not {self.kind}; set it to that in the "
                "scale file, or remove the folder `checkpoints` of the artifact to begin anew"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.steps_done = self.ema.steps = state["steps_done"]
        self.images_reported = state["images_reported"]
        loss, *norms = state["totals"]
        self.sums.set([loss if self.rank == 0 else 0.0, *norms])


def train(
    trainer: Trainer,
    schedule: Schedule,
    fetch: Fetch,
    report: Callable[[EpochMetrics], None],
    save: Callable[[Sequence[float]], None] = lambda totals: None,
    seconds: float = math.inf,
) -> None:
    """Take the remaining optimiser steps.

    Args:
        trainer: new, or loaded from the checkpoint of an earlier run.
        schedule: the same on every rank.
        fetch: returns the PAIRS rows at the given positions, in their order. It is called some steps ahead, from one
            other thread.
        report: called on every rank at the end of every epoch.
        save: called on every rank after the same steps with the totals for `Trainer.save`; a checkpoint saved there
            resumes exactly. It is not called after the last step.
        seconds: from one checkpoint to the next, by the clock of rank 0.
    """
    clocked, clock = schedule.images_after(trainer.steps_done), time.perf_counter()
    saved = clock
    for inputs in _prepare_ahead(trainer, schedule, fetch):
        epoch = schedule.epochs_after(trainer.steps_done)
        trainer.step(inputs)
        step, seen = trainer.steps_done, schedule.images_after(trainer.steps_done)
        is_end = schedule.epochs_after(step) > epoch
        if is_end:
            loss, norm, norms = trainer.sums.total()
            report(
                EpochMetrics(
                    step=step,
                    epoch=schedule.epochs_after(step),
                    images=seen,
                    loss=loss / (seen - trainer.images_reported),
                    images_per_second=(seen - clocked) / (time.perf_counter() - clock),
                    learning_rate=trainer.optimizer.param_groups[0]["lr"],
                    gradient_norm=norm / max(norms, 1.0),
                )
            )
            trainer.images_reported = seen
            trainer.sums.set([0.0, 0.0, 0.0])
            clocked, clock = seen, time.perf_counter()
        is_asked = step < schedule.steps and (is_end or step % _AGREEMENT == 0)
        if is_asked and _agree(time.perf_counter() - saved >= seconds):
            save(trainer.sums.total())
            saved = time.perf_counter()


def _prepare_ahead(trainer: Trainer, schedule: Schedule, fetch: Fetch) -> Iterator[Inputs]:
    """Yield this rank's inputs of the remaining steps; those of the next steps are read and prepared meanwhile."""

    def prepare(step: int) -> Inputs:
        batch = schedule.rank_batch(step, trainer.rank, trainer.world_size)
        return trainer.prepare(fetch(batch.positions), batch)

    steps = iter(range(trainer.steps_done, schedule.steps))
    with ThreadPoolExecutor(1) as reader:
        ready = deque(reader.submit(prepare, step) for step in islice(steps, _AHEAD))
        while ready:
            inputs = ready.popleft().result()
            ready.extend(reader.submit(prepare, step) for step in islice(steps, 1))
            yield inputs


def _agree(answer: bool) -> bool:
    """Return the answer of rank 0 on every rank; the device is not involved."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return answer
    answers = [answer]
    distributed.broadcast_object_list(answers, group=_cpu_group(), device=torch.device("cpu"))
    return answers[0]


@cache
def _cpu_group() -> Any:
    return distributed.new_group(backend="gloo")
