"""Knows how images become latents for the prototypes and posterior moments for fine-tuning (METHOD 2.2, 2.3)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from vlcp_ray import config, images, schemas
from vlcp_ray.models import diffusion, shapes
from vlcp_ray.seeds import seed_for


class Encode:
    """Row-wise: images in, latents and moments out. A row's result does not depend on the rows beside it."""

    def __init__(self, settings: config.Encode, base_model: str, batch_size: int, flip: bool = True) -> None:
        """Load the VAE.

        Args:
            settings: resolutions in pixels and the seed of the posterior samples.
            base_model: hub id, folder or demo/stable_diffusion.
            batch_size: images that the VAE sees at once.
            flip: whether training mirrors images, so that it needs the moments of both views.
        """
        self.settings = settings
        self.batch_size = batch_size
        self.flip = flip
        self.latent_shape = shapes.latent_shape(base_model, settings.resolution)
        self.train_shape = shapes.latent_shape(base_model, settings.train_resolution)
        self.vae = diffusion.load_vae(base_model, diffusion.pick_device())

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace `image` by `latent` (c, h, w), a posterior sample x scaling factor of the square view, and
        `train_moments` (1 or 2, 2c, h', w'), mean and logvar of the centre crop, plain and, with `flip`, mirrored;
        both float16.

        Rows that are rejected, here or before, hold zeros.
        """
        found, faults = images.decode_rows(table["image"].to_pylist(), schemas.reasons(table))
        rows, image_ids = list(found), table["image_id"].to_pylist()
        train = self._train_moments(list(found.values()))
        square = self._square_moments(list(found.values()), train[:, 0])
        latents = np.zeros((len(table), *self.latent_shape), np.float16)
        moments = np.zeros((len(table), *train.shape[1:]), np.float16)
        latents[rows] = self._sample(square, [image_ids[row] for row in rows])
        moments[rows] = train.numpy()
        table = schemas.reject(table, faults).drop_columns("image")
        table = schemas.with_column(table, "latent", schemas.tensor_array(latents))
        return schemas.with_column(table, "train_moments", schemas.tensor_array(moments))

    def _train_moments(self, found: Sequence[Image.Image]) -> torch.Tensor:
        crops = [images.center_crop(image, self.settings.train_resolution) for image in found]
        views = [view for crop in crops for view in (crop, crop[:, ::-1])] if self.flip else crops
        moments = self._moments(views, self.train_shape)
        return moments.reshape(len(found), 1 + self.flip, *moments.shape[1:])  # (n, views, 2c, h', w')

    def _square_moments(self, found: Sequence[Image.Image], crops: torch.Tensor) -> torch.Tensor:
        """Moments of the square views; where that view is the centre crop, its moments serve again."""
        size = self.settings.resolution
        equal = size == self.settings.train_resolution
        other = [row for row, image in enumerate(found) if not equal or image.width != image.height]
        own = self._moments([images.square(found[row], size) for row in other], self.latent_shape)
        if not equal:
            return own
        return crops.index_copy(0, torch.tensor(other, dtype=torch.long), own)  # (n, 2c, h, w)

    def _moments(self, views: Sequence[images.Pixels], shape: tuple[int, int, int]) -> torch.Tensor:
        parts = [torch.zeros(0, 2 * shape[0], *shape[1:])]
        for start in range(0, len(views), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(views)))
            batch = images.stack([views[row] for row in diffusion.filled(rows, self.batch_size)])
            parts.append(diffusion.encode(self.vae, batch)[: len(rows)])
        return torch.cat(parts)

    def _sample(self, moments: torch.Tensor, image_ids: Sequence[str]) -> npt.NDArray[np.float32]:
        seeds = [seed_for(self.settings.seed, "encode", image_id) for image_id in image_ids]
        noise = torch.empty(len(seeds), *self.latent_shape)
        for row, seed in enumerate(seeds):
            noise[row].normal_(generator=torch.Generator().manual_seed(seed))
        latents: npt.NDArray[np.float32] = (diffusion.sample(moments, noise) * self.vae.config.scaling_factor).numpy()
        return latents
