"""Metrics of a classifier: predicted labels, accuracies and confusion matrices."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vlcp_ray.models.batches import Batches
from vlcp_ray.protocols.augment import normalise

#: Images at a time on a CPU: fits into a core's share of the cache (297 images of 32 px take 180 ms, in 128 240 ms).
BATCH: Final = 64
#: Images at a time on a GPU: a ConvNet of width 128 needs 8 GiB for them at 224 pixels, and two trials share a GPU.
GPU_BATCH: Final = 128

_RANKS: Final = 5
_DEVIATIONS: Final = 4  # of thousands of trials that guess, one is above


@torch.inference_mode()
def predict(
    network: nn.Module, pixels: npt.NDArray[np.uint8], device: str = "cpu", batches: Batches | None = None
) -> Tensor:
    """Predict the five most likely labels of every image: (n, 3, s, s) uint8 -> (n, 5) int64, the most likely first.

    With fewer than five classes there are that many columns. The network is in eval mode during the prediction, and
    returns to its mode afterwards. Only one batch of the images is on the device, where the result stays.

    Args:
        batches: from `batches_for`; those of an earlier call are as small as that call needed.
    """
    was_training = network.training
    network.eval()

    def call(rows: range, _: int) -> Tensor:
        logits: Tensor = network(normalise(_to_device(pixels[rows.start : rows.stop], device)))
        return logits

    logits = torch.cat(list((batches or batches_for(device)).run(len(pixels), call)))
    network.train(was_training)
    return logits.topk(min(_RANKS, logits.shape[1])).indices


def batches_for(device: str) -> Batches:
    """Return the batches of `predict` on a device."""
    return Batches(BATCH if device == "cpu" else GPU_BATCH, "evaluate.input_size")


def _to_device(pixels: npt.NDArray[np.uint8], device: str) -> Tensor:
    """Copy pixels to a device, which is not waited for: the host prepares the next batch while it computes."""
    batch = torch.tensor(pixels)
    return batch if device == "cpu" else batch.pin_memory().to(device, non_blocking=True)


def accuracy(predicted: Tensor, labels: Tensor) -> tuple[float, float]:
    """Compute top-1 and top-5 (or top-k) accuracy, as fractions of 1, of predictions (n, k) for the labels (n,)."""
    hits = (predicted == labels[:, None]).double()
    return float(hits[:, 0].mean()), float(hits.sum(1).mean())


def guesses(predicted: Tensor, labels: Tensor) -> bool:
    """Return whether a classifier guesses: it has one answer for all images, or hits no more than guessing would.

    That is the share of the most frequent label, and four of its standard deviations; of so few images that guessing
    may have them all right, only the first shows it.

    Args:
        predicted: (n,) labels.
        labels: (n,) of more than one class.
    """
    if bool((predicted == predicted[0]).all()):
        return True
    share = float(labels.bincount().max()) / len(labels)
    bound = share + _DEVIATIONS * math.sqrt(share * (1 - share) / len(labels))
    return bound < 1 and float((predicted == labels).double().mean()) <= bound


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> npt.NDArray[np.int64]:
    """Count the images of label i that are predicted as label j: (n,) and (n,) -> (num_classes, num_classes)."""
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.view(num_classes, num_classes).cpu().numpy()
