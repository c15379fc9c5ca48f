"""The record of an evaluation protocol, and the epochs after which a network is validated."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from vlcp_ray.models.networks import NETWORKS, Norm

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from vlcp_ray.stages.evaluate import Evaluate

Labels = Literal["hard", "stored", "teacher"]


@dataclass(frozen=True, eq=False)
class Protocol:
    """An evaluation protocol: how a classifier is trained on a distilled set and tested on real images.

    Args:
        name: as `evaluate.protocols` names it.
        summary: one line for the reference.
        labels: of the training images: the set's own (hard), or a teacher's probabilities, of each image as it is
            stored, or of each augmented batch (teacher).
        norm: the normalisation layers of the networks that are trained under it; those of torchvision have their own.
        epochs: a function of the settings, ipc (0: the full train split) and number of classes that returns the number
            of training epochs.
        batch_size: a function of the settings, ipc, number of classes and number of training images that returns the
            images of a step.
        resize: a function of the input size that returns the short side, in pixels, to which val images are resized
            before the middle is cropped.
        training: `module:function` that trains a network (see `train`).
        recipe: a frozen dataclass of the numbers that the protocol fixes, such as its momentum and its table of epochs;
            `training` and `epochs` take them from it.
        settings: the fields of `Evaluate` that only this protocol and others that list them use.
        min_batch: a smaller last batch is joined to the one before it; networks with batch norm need two at least.
        budgets: a function of the settings that returns the numbers of epochs of trainings that differ in nothing else,
            where the settings list several.
        unvalidated: the share of the epochs that pass before the first validation.
        trains_full: whether it is also used to train on the full train split.
    """

    name: str
    summary: str
    labels: Labels
    norm: Norm
    epochs: Callable[["Evaluate", int, int], int]
    batch_size: Callable[["Evaluate", int, int, int], int]
    resize: Callable[[int], int]
    training: str
    recipe: "DataclassInstance"
    settings: tuple[str, ...] = ()
    min_batch: int = 1
    budgets: Callable[["Evaluate"], tuple[int, ...]] = lambda settings: ()
    unvalidated: float = 0.0
    trains_full: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher labels the training images."""
        return self.labels != "hard"

    def steps_per_epoch(self, settings: "Evaluate", network: str, ipc: int, classes: int, images: int) -> int:
        """Compute the steps of an epoch of training a network on `images` images."""
        smallest = max(self.min_batch, NETWORKS[network].min_batch(self.norm))
        return steps_per_epoch(images, self.batch_size(settings, ipc, classes, images), smallest)

    def hashed_settings(self) -> dict[str, Any]:
        """Return the protocol's constants, which are hashed into the fingerprint of its scores."""
        return {"norm": self.norm, "unvalidated": self.unvalidated, **asdict(self.recipe)}

    def should_validate(self, epoch: int, epochs: int, validations: int) -> bool:
        """Return whether the network is validated after this epoch, counted from 1."""
        return (should_validate(epoch, epochs, validations) and epoch > self.unvalidated * epochs) or epoch == epochs

    def validated_epochs(self, epochs: int, validations: int) -> list[int]:
        """List the epochs, counted from 1, after which a network is validated: those of the `curve` of SCORES."""
        return [epoch for epoch in range(1, epochs + 1) if self.should_validate(epoch, epochs, validations)]

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Call the function named by `training`: it trains a network and yields each epoch (`training.Epoch`)."""
        return resolve_name(self.training)(*arguments, **options)


def should_validate(epoch: int, epochs: int, validations: int) -> bool:
    """Return whether to validate after this epoch, counted from 1: about `validations` times, always after the last."""
    return epoch % max(1, epochs // validations) == 0 or epoch == epochs


def steps_per_epoch(count: int, batch_size: int, min_batch: int = 1) -> int:
    """Compute the number of batches of `count` images, where a last one of fewer than `min_batch` joins another."""
    whole, rest = divmod(count, batch_size)
    return max(1, whole + (rest >= min_batch))
