"""Write a distilled set as the tensors that DD-Ranking loads: `compute_metrics(image_tensor=..., soft_labels=...)`.

github.com/NUS-HPC-AI-Lab/DD-Ranking, version 0.2: it trains on the tensor as it is, beside real images that it
normalises (`ddranking/utils/data.py`, `get_dataset`), and takes hard labels from the order: all images of class 0, then
of class 1.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from vlcp_ray import images
from vlcp_ray.exports.rows import read_sorted
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.scoring.scales import NORMALISATIONS
from vlcp_ray.scoring.tensors import MAX_VALUES
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.artifact import Artifact

if TYPE_CHECKING:
    import torch

#: The value of `export --format`.
FORM: Final = "dd-ranking"
IMAGES: Final = "images.pt"
LABELS: Final = "labels.pt"
#: Side in pixels of the images of CIFAR-10 and CIFAR-100, which DD-Ranking normalises by those of CIFAR-10.
CIFAR_SIDE: Final = 32
CIFAR: Final = NORMALISATIONS["cifar10"]
IMAGENET: Final = NORMALISATIONS["imagenet"]
_ROWS: Final = 1000  # images whose files are in memory at once
_SMALLEST: Final = 1e-38  # a probability of 0 has no logarithm


def write(
    synthetic: Artifact, target: Artifact, soft_labels: Callable[[pa.Table], pa.Array] | None = None
) -> list[str]:
    """Write images.pt, (n, 3, h, w) float32 normalised, and labels.pt, both sorted by label and image_id.

    Args:
        soft_labels: computes the class probabilities of rows, in the order of the labels. labels.pt has their
            logarithms then, (n, classes) float32: the losses of DD-Ranking take logits, of which they compute the
            softmax at their temperature. None: it has the class numbers, (n,) int64.

    Returns the ids of the images, in their order.

    Raises:
        ConfigError: the classes have different numbers of images, or the images different sizes, or are too many.
    """
    import torch

    parts, labels, shares, ids = list[torch.Tensor](), list[int](), list[torch.Tensor](), list[str]()
    sizes = set[tuple[int, ...]]()
    for part in read_sorted(synthetic, "synthetic", SYNTHETIC.names, ("label", "image_id"), _ROWS):
        pixels = [np.asarray(images.decode(data.as_py())) for data in part["image"]]
        sizes |= {image.shape for image in pixels}
        if len(sizes) > 1:
            raise ConfigError(f"--format {FORM}: the images have several sizes, and a tensor has one; export a folder")
        parts.append(_normalise(torch.from_numpy(np.stack(pixels))))
        if sum(one.numel() for one in parts) > MAX_VALUES:
            raise ConfigError(f"--format {FORM}: the set is too large for one tensor; export a folder")
        labels += part["label"].to_pylist()
        ids += part["image_id"].to_pylist()
        if soft_labels:
            rows = torch.tensor(soft_labels(part).flatten().to_numpy()).view(len(part), -1)
            shares.append(rows.clamp(min=_SMALLEST).log())
    counts = np.bincount(labels)
    if len({*counts.tolist()}) > 1:
        raise ConfigError(
            f"--format {FORM}: the classes have {counts.min()} to {counts.max()} images, and DD-Ranking takes labels "
            "from the order of images, the same number of each class; export a folder"
        )
    _save(target, IMAGES, torch.cat(parts))
    _save(target, LABELS, torch.cat(shares) if shares else torch.tensor(labels))
    return ids


def _normalise(pixels: "torch.Tensor") -> "torch.Tensor":
    """Turn pixels (n, h, w, 3) uint8 into numbers (n, 3, h, w) as DD-Ranking's real images have them."""
    import torch

    is_cifar = pixels.shape[1:3] == (CIFAR_SIDE, CIFAR_SIDE)
    mean, std = (torch.tensor(values) for values in (CIFAR if is_cifar else IMAGENET))
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def _save(target: Artifact, name: str, tensor: "torch.Tensor") -> None:
    import torch

    content = io.BytesIO()
    torch.save(tensor, content)
    target.write_bytes(name, content.getvalue())
