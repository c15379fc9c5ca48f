"""Encode the training images of a class for the training of a DiT, and read them by their position."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray import images
from vlcp_ray.models import pretrained
from vlcp_ray.schemas import IMAGES, tensor_array
from vlcp_ray.stages.finetune.batches import Positions
from vlcp_ray.store.artifact import Artifact

if TYPE_CHECKING:
    from vlcp_ray.methods.minimax import Minimax


@dataclass(frozen=True)
class MomentRows:
    """The training images of some classes as moments of the VAE's posterior, sorted by image_id.

    Args:
        image_ids: of the n images.
        labels: (n,) int64.
        moments: (n, views, 2c, h, w) float16: mean and logvar of the centre crop, plain and, with two views, mirrored.
    """

    image_ids: Sequence[str]
    labels: npt.NDArray[np.int64]
    moments: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def concatenate(cls, parts: "Sequence[MomentRows]") -> "MomentRows":
        """Join the rows of several classes, and sort them by image_id."""
        ids = np.array([image_id for part in parts for image_id in part.image_ids])
        order = np.argsort(ids, kind="stable")
        labels, moments = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "moments"))
        return cls(ids[order].tolist(), labels[order], moments[order])

    def reader(self) -> Callable[[Positions], pa.Table]:
        """Return a function from positions to their rows: image_id, label and train_moments, in the same order."""

        def read_rows(positions: Positions) -> pa.Table:
            columns = {
                "image_id": [self.image_ids[position] for position in positions],
                "label": self.labels[positions],
                "train_moments": tensor_array(self.moments[positions]),
            }
            return pa.table(columns)

        return read_rows


def encode_class(artifact: Artifact, label: int, settings: "Minimax", batch_size: int) -> MomentRows:
    """Encode the training images of one class with the VAE of the DiT.

    Raises:
        ValueError: the VAE makes numbers of an image that are not finite, also in float32.
    """
    columns = ["image_id", "label", "split", "image"]
    rows = artifact.rows("images", IMAGES, columns, "label", pa.array([label], pa.int32()))
    rows = rows.filter(pc.equal(rows["split"], "train")).sort_by("image_id")
    image_ids = rows["image_id"].to_pylist()
    moments = encode_images(rows["image"].to_pylist(), image_ids, settings, batch_size)
    return MomentRows(image_ids, np.full(len(rows), label, np.int64), moments)


def encode_images(
    contents: Sequence[bytes], image_ids: Sequence[str], settings: "Minimax", batch_size: int
) -> npt.NDArray[np.float16]:
    """Encode the centre crops of images: -> (n, 1 or 2 views, 2c, h, w). Each depends on its own image only."""
    from vlcp_ray.models import dit, stable_diffusion
    from vlcp_ray.models.batches import Batches

    vae = stable_diffusion.load_vae(settings.model, stable_diffusion.pick_device())
    side = pretrained.dit_resolution(settings.model)

    def encode(batch: range, size: int) -> npt.NDArray[np.float16]:
        crops = [images.center_crop(images.decode(contents[row]), side) for row in batch]
        pixels = np.stack([crops[row] for row in stable_diffusion.padded(range(len(crops)), size)])
        views = dit.encode_views(vae, pixels, settings.random_flip)[: len(crops)]
        for row in np.flatnonzero(~np.isfinite(views).all(axis=(1, 2, 3, 4))).tolist():
            with stable_diffusion.in_float32(vae):
                views[row] = dit.encode_views(vae, crops[row][None], settings.random_flip)[0]
            if not np.isfinite(views[row]).all():
                raise ValueError(
                    f"compare.minimax: the VAE of {settings.model} makes numbers of {image_ids[batch[row]]!r} that are "
                    "not finite, also in float32; remove the image"
                )
        return views

    return np.concatenate(list(Batches(batch_size, "encode.batch_size").run(len(contents), encode)))
