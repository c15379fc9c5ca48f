"""Train a network step by step, on one device or as one rank of several: what all fine-tunings share."""

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vlcp_ray.models.stable_diffusion import sample
from vlcp_ray.monitoring.memory import count_halving
from vlcp_ray.scale import FinetunePool
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.finetune.batches import Positions, RankBatch, Schedule
from vlcp_ray.stages.finetune.optimizer import MovingAverage, make_optimizer

Fetch = Callable[[Positions], pa.Table]
In = TypeVar("In", bound="RankInputs")

#: Steps whose inputs are read and prepared before they are needed.
_AHEAD: Final = 2
#: Steps from one question to the next whether a checkpoint is due; it is asked at the end of every epoch, too.
_AGREEMENT: Final = 25
TOO_LITTLE_MEMORY: Final = (
    "{}.batch_size: not even one image fits into the memory of the GPU; in the section [finetune] of the scale "
    'file set gradient_checkpointing = true, average_on = "cpu" or optimizer = "adamw8bit", or give it larger GPUs'
)


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

    def __init__(self, device: torch.device, section: str) -> None:
        self.section = section
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
            raise ValueError(f"{self.section}.learning_rate: training diverged at step {first_bad}; lower it")
        loss = self.loss.clone()
        if distributed.is_initialized():
            distributed.all_reduce(loss)
        values: list[float] = torch.cat([loss[None], self.norm]).tolist()
        return values

    def set(self, values: Sequence[float]) -> None:
        """Set the sums to what `total` has returned."""
        self.loss.fill_(values[0])
        self.norm.copy_(torch.tensor(values[1:], dtype=torch.float64))


class RankInputs:
    """What one rank needs for an optimiser step.

    Args:
        weight: of a row in the loss (see `RankBatch`).
        images: of the whole batch, over all ranks.
    """

    weight: float
    images: int


class RankTrainer(ABC, Generic[In]):
    """A network, the moving average (EMA) of its trained weights and its optimiser; every rank has one.

    It steps with its part of the batch. Within an epoch nothing waits for the device, unless the average is on the CPU:
    losses and norms are summed there.

    Args:
        network: on its device, with the weights that are trained requiring gradients.
        section: of the job file, named in errors.
        learning_rate, weight_decay, max_grad_norm: of AdamW, and the norm to which gradients are scaled down.
        average: the moving average of the trained weights.
        pool: images in one forward pass, and what saves memory.
        device: torch device of this rank.
        rank, world_size: the number of this rank, and how many ranks there are.
        wrap: wraps the network for distributed training, e.g. `ray.train.torch.prepare_model`.
        uses_scaler: whether gradients are scaled, as fp16 needs it.
    """

    def __init__(
        self,
        network: nn.Module,
        section: str,
        learning_rate: float,
        weight_decay: float,
        max_grad_norm: float,
        average: MovingAverage,
        pool: FinetunePool,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
        uses_scaler: bool = False,
    ) -> None:
        self.network, self.section, self.max_grad_norm = network, section, max_grad_norm
        self.batch_per_device, self.rank, self.world_size, self.device = pool.batch_size, rank, world_size, device
        self.model: Any = wrap(network)
        self.ema = average
        self.kind = pool.optimizer
        self.optimizer = make_optimizer(pool.optimizer, self.trained.values(), learning_rate, weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=uses_scaler)
        self.steps_done = self.images_reported = 0
        self.sums = EpochSums(device, section)
        self.is_adding_up = False
        self._set_up_buckets()

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, by their name, in the order of the optimiser and of the average."""
        return {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}

    @abstractmethod
    def prepare(self, table: pa.Table, batch: RankBatch) -> In:
        """Turn the rows of a rank's batch into the inputs of `step`; may run in another thread than it."""

    @abstractmethod
    def accumulate_rows(self, inputs: In) -> torch.Tensor:
        """Add the gradient of `inputs`, `batch_per_device` rows at a time; returns the same as `step`.

        It uses `collecting`, `forward` and `backward` for each part of the rows.
        """

    @abstractmethod
    def touch(self) -> torch.Tensor:
        """Run the network on one row of zeros, so that DDP sets up its buckets; returns any of its outputs."""

    @abstractmethod
    def validate(self, epoch: int) -> list[bytes]:
        """Return the validation images of an epoch that has ended as PNG; none after most epochs."""

    @abstractmethod
    def export(self, target: str | Path) -> None:
        """Write the result, with the moving average of the weights, to a folder."""

    def state(self) -> Mapping[str, torch.Tensor]:
        """Return what else determines the next steps; a checkpoint has it."""
        return {}

    def set_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set what `state` has returned."""

    def step(self, inputs: In) -> torch.Tensor:
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

    def accumulate(self, inputs: In) -> torch.Tensor:
        """Add the gradient of `inputs` to the network's; returns the same as `step`.

        Where the device has too little memory for so many rows, their number is halved: the gradient is the same.

        Raises:
            torch.OutOfMemoryError: the memory ended while the ranks were adding up their gradients, which cannot be
                repeated by one of them.
        """
        while True:
            try:
                return self.accumulate_rows(inputs)
            except torch.OutOfMemoryError as error:
                if self.is_adding_up:
                    raise
                self._halve(error)

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        """Halve the rows of a forward pass, and drop the gradients so far."""
        if self.batch_per_device == 1:
            raise ValueError(TOO_LITTLE_MEMORY.format(self.section)) from error
        self.batch_per_device //= 2
        self._clear_gradients()
        count_halving()

    @property
    def is_distributed(self) -> bool:
        return isinstance(self.model, DistributedDataParallel)

    def collecting(self, is_last: bool) -> Any:
        """Return the context of forward and backward pass of some rows, in which no gradient is sent but the last."""
        return self.model.no_sync() if self.is_distributed and not is_last else nullcontext()

    def forward(self, is_last: bool, *inputs: torch.Tensor, **options: Any) -> torch.Tensor:
        """Run the network; from the last forward pass of a step on, DDP waits for the backward pass on all ranks."""
        output: torch.Tensor = self.model(*inputs, **options, return_dict=False)[0]
        self.is_adding_up = self.is_distributed and is_last
        return output

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of some rows."""
        torch.autograd.backward(self.scaler.scale(loss))
        self.is_adding_up = False

    def update(self) -> None:
        """Clip the gradient, step the optimiser and the moving average.

        In fp16 a step whose gradient is not finite is skipped, because the loss scale was too large.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.max_grad_norm)
        self.sums.add_norm(norm, self.steps_done + 1, must_be_finite=not self.scaler.is_enabled())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._clear_gradients()
        self.ema.step()
        self.steps_done += 1

    def _set_up_buckets(self) -> None:
        """Let DDP set up its buckets, which it does anew in the second step: later the old ones would cost memory."""
        if not self.is_distributed:
            return
        for _ in range(2):
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self.touch().float().sum() * 0)
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        """Set the gradients to zero: with DDP they are views into its buckets and stay so."""
        self.optimizer.zero_grad(set_to_none=not self.is_distributed)

    def save(self, target: str | Path, totals: Sequence[float]) -> None:
        """Write a checkpoint from which `load` resumes exactly: three files of tensors, and optimizer.pt.

        Args:
            totals: of `EpochSums.total`.
        """
        weights = self.trained
        files = {
            "weights": {name: value.detach() for name, value in weights.items()},
            "ema": dict(zip(weights, self.ema.weights, strict=True)),
            "state": dict(self.state()),
        }
        for name, tensors in files.items():
            save_file(tensors, Path(target, f"{name}.safetensors"))
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "kind": self.kind}
        state |= {"steps_done": self.steps_done, "images_reported": self.images_reported, "totals": list(totals)}
        torch.save(state, Path(target, "optimizer.pt"))

    def load(self, source: str | Path) -> None:
        """Read a checkpoint that `save` has written; the next step is the one after it.

        Raises:
            ValueError: it is of another optimiser.
        """
        weights, saved = self.trained, load_file(Path(source, "weights.safetensors"))
        averages = load_file(Path(source, "ema.safetensors"), device=str(self.ema.weights[0].device))
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[name])
        self.ema.weights = [averages[name] for name in weights]
        self.set_state(load_file(Path(source, "state.safetensors"), device=str(self.device)))
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


def sample_noise(
    image_ids: Sequence[str], epochs: Positions, seed: int, use: str, shape: Sequence[int], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample the random numbers of rows; those of a row are a function of the seed, its epoch and its image_id.

    Args:
        use: what they are for.
        shape: of a latent.
        count: whole numbers of each row.

    Returns:
        (n, count) int64 in [0, 2^31), and (n, 2, *shape) of the normal distribution: of the posterior, and the noise.
    """
    normal = torch.empty(len(image_ids), 2, *shape)
    integers = torch.empty(len(image_ids), count, dtype=torch.int64)
    generator = torch.Generator()  # on the CPU, so that the numbers are the same on a GPU
    for row, (epoch, image_id) in enumerate(zip(epochs, image_ids, strict=True)):
        generator.manual_seed(seed_for(seed, use, int(epoch), image_id))
        integers[row].random_(2**31, generator=generator)
        normal[row].normal_(generator=generator)
    return integers, normal


def sample_latents(
    moments: npt.NDArray[np.float16], flips: torch.Tensor, normal: torch.Tensor, scaling_factor: float
) -> torch.Tensor:
    """Sample scaled latents (n, c, h, w) from moments (n, views, 2c, h, w), of the view that `flips` (n,) names."""
    chosen = moments[np.arange(len(moments)), flips.numpy()].astype(np.float32)
    return sample(torch.from_numpy(chosen), normal) * scaling_factor


def train(
    trainer: "RankTrainer[Any]",
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
        fetch: returns the rows at the given positions, in their order. It is called some steps ahead, from one
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


def _prepare_ahead(trainer: "RankTrainer[Any]", schedule: Schedule, fetch: Fetch) -> Iterator[Any]:
    """Yield this rank's inputs of the remaining steps; those of the next steps are read and prepared meanwhile."""

    def prepare(step: int) -> Any:
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
