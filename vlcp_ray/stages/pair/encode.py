"""Encode images to latents for the prototypes and to posterior moments for fine-tuning."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from vlcp_ray import images, schemas
from vlcp_ray.models import pretrained, stable_diffusion
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages import pair


class EncodeRows:
    """Row-wise: encode images. The result of a row does not depend on the other rows."""

    def __init__(self, settings: pair.Encode, base_model: str, batch_size: int, flip: bool = True) -> None:
        """Load the VAE.

        Args:
            settings: resolutions in pixels and the seed of the posterior samples.
            base_model: hub id, folder or demo/stable_diffusion.
            batch_size: images that the VAE encodes at once.
            flip: whether fine-tuning flips images at random, so that it needs the moments of the mirrored view too.
        """
        self.settings = settings
        self.batch_size = batch_size
        self.flip = flip
        self.latent_shape = pretrained.latent_shape(base_model, settings.resolution)
        self.train_shape = pretrained.latent_shape(base_model, settings.train_resolution)
        self.vae = stable_diffusion.load_vae(base_model, stable_diffusion.pick_device())

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace `image` by `latent` (c, h, w), a posterior sample x scaling factor of the square view, and
        `train_moments` (1 or 2, 2c, h', w'), mean and logvar of the centre crop, plain and, with `flip`, mirrored;
        both float16.

        Rows that are rejected, here or before, have zeros.
        """
        decoded, errors = images.decode_rows(table["image"].to_pylist(), schemas.reasons(table))
        rows, image_ids = list(decoded), table["image_id"].to_pylist()
        train = self._train_moments(list(decoded.values()))
        square = self._square_moments(list(decoded.values()), train[:, 0])
        latents = np.zeros((len(table), *self.latent_shape), np.float16)
        moments = np.zeros((len(table), *train.shape[1:]), np.float16)
        latents[rows] = self._sample(square, [image_ids[row] for row in rows])
        moments[rows] = train.numpy()
        table = schemas.reject(table, errors).drop_columns("image")
        table = schemas.with_column(table, "latent", schemas.tensor_array(latents))
        return schemas.with_column(table, "train_moments", schemas.tensor_array(moments))

    def _train_moments(self, decoded: Sequence[Image.Image]) -> torch.Tensor:
        """Encode the training views: the centre crop of each image and, with `flip`, its mirrored view."""
        crops = [images.center_crop(image, self.settings.train_resolution) for image in decoded]
        views = [view for crop in crops for view in (crop, crop[:, ::-1])] if self.flip else crops
        moments = self._encode(views, self.train_shape)
        return moments.reshape(len(decoded), 1 + self.flip, *moments.shape[1:])  # (n, views, 2c, h', w')

    def _square_moments(self, decoded: Sequence[Image.Image], crops: torch.Tensor) -> torch.Tensor:
        """Encode the square views; a view that equals the centre crop takes its moments from `crops`."""
        size = self.settings.resolution
        same_size = size == self.settings.train_resolution
        different = [row for row, image in enumerate(decoded) if not same_size or image.width != image.height]
        moments = self._encode([images.square(decoded[row], size) for row in different], self.latent_shape)
        if not same_size:
            return moments
        return crops.index_copy(0, torch.tensor(different, dtype=torch.long), moments)  # (n, 2c, h, w)

    def _encode(self, views: Sequence[images.Pixels], shape: tuple[int, int, int]) -> torch.Tensor:
        """Encode views in padded batches. Returns the moments, (n, 2c, h, w) for a latent shape of (c, h, w)."""
        parts = [torch.zeros(0, 2 * shape[0], *shape[1:])]
        for start in range(0, len(views), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(views)))
            batch = images.stack([views[row] for row in stable_diffusion.padded(rows, self.batch_size)])
            parts.append(stable_diffusion.encode(self.vae, batch)[: len(rows)])
        return torch.cat(parts)

    def _sample(self, moments: torch.Tensor, image_ids: Sequence[str]) -> npt.NDArray[np.float32]:
        """Sample a latent of each row's posterior, with noise from the row's own seed, and scale it."""
        seeds = [seed_for(self.settings.seed, "encode", image_id) for image_id in image_ids]
        noise = torch.empty(len(seeds), *self.latent_shape)
        for row, seed in enumerate(seeds):
            noise[row].normal_(generator=torch.Generator().manual_seed(seed))
        latents: npt.NDArray[np.float32] = (
            stable_diffusion.sample(moments, noise) * self.vae.config.scaling_factor
        ).numpy()
        return latents
