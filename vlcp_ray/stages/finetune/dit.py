"""Fine-tune a class-conditional DiT with the two terms of Minimax Diffusion (Gu et al. 2024)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import distributed, nn

from vlcp_ray import schemas
from vlcp_ray.models import dit, pretrained
from vlcp_ray.scale import FinetunePool
from vlcp_ray.stages.finetune import TRAINED
from vlcp_ray.stages.finetune.batches import RankBatch
from vlcp_ray.stages.finetune.optimizer import MovingAverage
from vlcp_ray.stages.finetune.training import RankInputs, RankTrainer, sample_latents, sample_noise

if TYPE_CHECKING:
    from vlcp_ray.methods.minimax import Minimax


@dataclass(frozen=True)
class Inputs(RankInputs):
    """Latents and classes of an optimiser step, on the CPU; pinned where they go to a GPU.

    Args:
        latents, noise: (n, c, h, w).
        timesteps: (n,).
        labels: (n,), of the image set.
        classes: (n,), the DiT's numbers; of some rows that of no class.
        weight, images: see `RankInputs`.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    labels: torch.Tensor
    classes: torch.Tensor
    weight: float
    images: int

    def on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Copy latents, noise, timesteps and classes to a device, which is not waited for."""
        tensors = (self.latents, self.noise, self.timesteps, self.classes)
        return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)


class Target(NamedTuple):
    """A predicted latent of the batch that a term moves: its row, away from or towards `other`, with a weight.

    Args:
        row: in the batch over all ranks.
        other: latent of a memory, (c, h, w).
        weight: of their cosine similarity in the loss: negative where it is to grow.
        constant: of the term.
    """

    row: int
    other: torch.Tensor
    weight: float
    constant: float


def cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compute the cosine similarities of flattened tensors: (n, ...) and (m, ...) -> (n, m)."""
    a, b = (nn.functional.normalize(values.flatten(1), dim=1) for values in (first, second))
    return a @ b.T


class Memories:
    """The newest latents of each class that were trained on, and those that were predicted of them.

    Args:
        size: latents of a class that are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.real: dict[int, torch.Tensor] = {}
        self.predicted: dict[int, torch.Tensor] = {}

    def targets(
        self, predicted: torch.Tensor, labels: Sequence[int], representativeness: float, diversity: float
    ) -> list[Target]:
        """Find, for each class of a batch that has memories, the two similarities that its terms are made of.

        The terms of a class are `representativeness` x (1 - the lowest similarity of its predictions to its real
        latents) and `diversity` x the highest similarity to its earlier predictions, divided by the number of classes
        in the batch.

        Args:
            predicted: clean latents of the batch over all ranks, (n, c, h, w).
            labels: of these rows.
        """
        found, classes = [], sorted(set(labels))
        for label in classes:
            if label not in self.real:
                continue
            rows = [row for row, other in enumerate(labels) if other == label]
            own, share = predicted[rows], 1 / len(classes)
            lowest = cosine(own, self.real[label])
            row, other = divmod(int(lowest.argmin()), lowest.shape[1])
            weight = representativeness * share
            found.append(Target(rows[row], self.real[label][other], -weight, weight))
            highest = cosine(own, self.predicted[label])
            row, other = divmod(int(highest.argmax()), highest.shape[1])
            found.append(Target(rows[row], self.predicted[label][other], diversity * share, 0.0))
        return found

    def add(self, real: torch.Tensor, predicted: torch.Tensor, labels: Sequence[int]) -> None:
        """Add a batch, and drop the oldest latents of each class beyond `size`."""
        for label in sorted(set(labels)):
            rows = [row for row, other in enumerate(labels) if other == label]
            for memory, values in ((self.real, real), (self.predicted, predicted)):
                kept = [memory[label]] if label in memory else []
                memory[label] = torch.cat([*kept, values[rows]])[-self.size :].clone()


class DitTrainer(RankTrainer[Inputs]):
    """A DiT of which DiffFit's weights learn to predict noise and variance, with the two terms of `Memories`."""

    def __init__(
        self,
        settings: "Minimax",
        seed: int,
        classes: Mapping[int, int],
        pool: FinetunePool,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        """Load the DiT in float32.

        Args:
            settings: of the method.
            seed: of flips, timesteps, noise, and of the rows without a class.
            classes: the DiT's number of each label.
            pool, device, rank, world_size, wrap: as in `RankTrainer`.
        """
        self.settings, self.seed, self.classes = settings, seed, dict(classes)
        place = torch.device(device)
        # In eval mode: in training mode diffusers drops the class of a row in some blocks and not in others.
        self.dit = dit.load(settings.model, device).eval()
        wanted = set(dit.trained_by_difffit(self.dit))
        for name, weight in self.dit.named_parameters():
            weight.requires_grad_(name in wanted)
        if pool.gradient_checkpointing:
            self.dit.enable_gradient_checkpointing()
        self.schedule = dit.load_schedule(settings.model)
        self.diffusion = dit.Diffusion(self.schedule, place)
        self.scaling_factor = pretrained.scaling_factor(settings.model)
        self.memories = Memories(settings.memory_size)
        self._targets: tuple[list[Target], torch.Tensor, torch.Tensor, list[int]] | None = None
        average_on = place if pool.average_on == "gpu" else torch.device("cpu")
        super().__init__(
            self.dit,
            "compare.minimax",
            settings.learning_rate,
            0.0,
            float("inf"),
            MovingAverage(self.dit, settings.ema_decay, average_on, warm_up=False),
            pool,
            place,
            rank,
            world_size,
            wrap,
        )

    def prepare(self, table: pa.Table, batch: RankBatch) -> Inputs:
        """Sample the latents, noise and timesteps of rows with image_id, label and train_moments; see `RankTrainer`."""
        moments = schemas.tensors(table["train_moments"])
        shape = (moments.shape[2] // 2, *moments.shape[3:])
        integers, normal = sample_noise(table["image_id"].to_pylist(), batch.epochs, self.seed, "minimax", shape, 3)
        labels = torch.tensor(table["label"].to_pylist())
        classes = torch.tensor([self.classes[label] for label in labels.tolist()])
        nameless = integers[:, 2] < self.settings.class_dropout * 2**31
        flips = integers[:, 1] % 2 if self.settings.random_flip else torch.zeros(len(labels), dtype=torch.int64)
        tensors = [
            sample_latents(moments, flips, normal[:, 0], self.scaling_factor),
            normal[:, 1].contiguous(),
            integers[:, 0] % self.diffusion.timesteps,
            labels,
            torch.where(nameless, self.dit.config.num_embeds_ada_norm, classes),
        ]
        if self.device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        latents, noise, timesteps, labels, named = tensors
        return Inputs(latents, noise, timesteps, labels, named, batch.weight, batch.images)

    def accumulate_rows(self, inputs: Inputs) -> torch.Tensor:
        """See `RankTrainer`.

        The terms of a class are those of its rows on all ranks: each rank has the predictions of all, and the gradient
        of those that the terms have chosen among its own. Where its rows are more than one forward pass takes, they are
        predicted once more to choose.
        """
        n, size = len(inputs.timesteps), self.batch_per_device
        latents, noise, timesteps, classes = inputs.on(self.device)
        noisy = self.diffusion.add_noise(latents, noise, timesteps)
        first = None
        if self._targets is None:
            if n <= size:
                first = self.forward(True, noisy, timesteps, classes)
                output = first.detach()
            else:
                parts = [slice(start, start + size) for start in range(0, n, size)]
                with torch.no_grad():
                    output = torch.cat(
                        [self.dit(noisy[p], timesteps[p], classes[p], return_dict=False)[0] for p in parts]
                    )
            clean = self.diffusion.predict_clean(noisy, output.chunk(2, dim=1)[0], timesteps)
            self._targets = self._choose(inputs, clean, latents)
        targets, predicted, real, labels = self._targets
        share = torch.zeros((), device=self.device)
        for start in range(0, n, size):
            part, is_last = slice(start, start + size), start + size >= n
            with self.collecting(is_last):
                rows = (noisy[part], timesteps[part], classes[part])
                output = self.forward(is_last, *rows) if first is None else first
                losses = self.diffusion.losses(output, latents[part], noisy[part], noise[part], timesteps[part])
                loss = losses.sum() * inputs.weight
                if inputs.weight:
                    clean = self.diffusion.predict_clean(noisy[part], output.chunk(2, dim=1)[0], timesteps[part])
                    loss = loss + self.world_size * self._terms(targets, clean, start)
                self.backward(loss)
            share += loss.detach()
        self.memories.add(real, predicted, labels)
        self._targets = None
        return share / self.world_size

    def _terms(self, targets: Sequence[Target], clean: torch.Tensor, start: int) -> torch.Tensor:
        """Add up the terms whose rows are among some of this rank's: (n, c, h, w) from its row `start` on."""
        total = torch.zeros((), device=self.device)
        for target in targets:
            row, rank = divmod(target.row, self.world_size)
            if rank == self.rank and start <= row < start + len(clean):
                similarity = cosine(clean[row - start : row - start + 1], target.other[None])[0, 0]
                total = total + target.constant + target.weight * similarity
        return total

    def _choose(
        self, inputs: Inputs, clean: torch.Tensor, latents: torch.Tensor
    ) -> tuple[list[Target], torch.Tensor, torch.Tensor, list[int]]:
        """Choose the targets of the batch over all ranks; returns these, its predictions, its latents and labels."""
        predicted, real = (self._gather(values, inputs.images) for values in (clean, latents))
        labels = self._gather(inputs.labels.to(self.device), inputs.images).tolist()
        settings = self.settings
        targets = self.memories.targets(predicted, labels, settings.representativeness, settings.diversity)
        return targets, predicted, real, labels

    def _gather(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """Return the `count` rows of all ranks, in the order of the batch, of which each rank has every n-th row."""
        if self.world_size == 1 or not distributed.is_initialized():
            return values.contiguous()
        most = -(-count // self.world_size)
        padded = torch.cat([values, values[:1].expand(most, *values.shape[1:])])[:most].contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        distributed.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    def touch(self) -> torch.Tensor:
        """See `RankTrainer`."""
        config = self.dit.config
        noisy = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size, device=self.device)
        zero = torch.zeros(1, dtype=torch.long, device=self.device)
        output: torch.Tensor = self.model(noisy, zero, zero, return_dict=False)[0]
        return output

    def validate(self, epoch: int) -> list[bytes]:
        """See `RankTrainer`; there are none."""
        return []

    def state(self) -> dict[str, torch.Tensor]:
        """Return the memories."""
        memories = {"real": self.memories.real, "predicted": self.memories.predicted}
        return {f"{name}.{label}": values for name, memory in memories.items() for label, values in memory.items()}

    def set_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set the memories."""
        for name, values in state.items():
            memory, _, label = name.partition(".")
            getattr(self.memories, memory)[int(label)] = values

    def export(self, target: str | Path) -> None:
        """Write the average of the trained weights as one file of safetensors; the others are those of the DiT."""
        weights = {name: value.cpu().contiguous() for name, value in zip(self.trained, self.ema.weights, strict=True)}
        save_file(weights, Path(target, TRAINED))
