"""Encode images to latents for the prototypes and to posterior moments for fine-tuning."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from vlcp_ray import images, schemas
from vlcp_ray.models import pretrained, stable_diffusion
from vlcp_ray.models.batches import Batches
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages import pair


@dataclass(frozen=True)
class Views:
    """What the VAE encodes of an image: its centre crop, and the square view, None where it is the same."""

    crop: images.Pixels
    square: images.Pixels | None


class EncodeRows:
    """Row-wise: encode images. The result of a row does not depend on the other rows."""

    def __init__(
        self, settings: pair.Encode, base_model: str, batch_size: int, flip: bool = True, threads: int = 1
    ) -> None:
        """Load the VAE.

        Args:
            settings: resolutions in pixels and the seed of the posterior samples.
            base_model: hub id, folder or demo/stable_diffusion.
            batch_size: images that the VAE encodes at once.
            flip: whether fine-tuning flips images at random, so that it needs the moments of the mirrored view too.
            threads: that decode and resize images while the VAE encodes others.
        """
        self.settings = settings
        self.batches = Batches(batch_size, "encode.batch_size")
        self.flip = flip
        self.threads = ThreadPoolExecutor(threads)
        self.latent_shape = pretrained.latent_shape(base_model, settings.resolution)
        self.train_shape = pretrained.latent_shape(base_model, settings.train_resolution)
        self.vae = stable_diffusion.load_vae(base_model, stable_diffusion.pick_device())

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace `image` by `latent` (c, h, w), a posterior sample x scaling factor of the square view, and
        `train_moments` (1 or 2, 2c, h', w'), mean and logvar of the centre crop, plain and, with `flip`, mirrored;
        both float16.

        Rows that are rejected, here or before, have zeros. Here: images that cannot be decoded, and those of which the
        VAE makes numbers that are not finite, also in float32 (`not_finite`).
        """
        contents, reasons = table["image"].to_pylist(), schemas.reasons(table)
        views = {
            row: self.threads.submit(self._make_views, contents[row])
            for row, reason in enumerate(reasons)
            if not reason
        }
        rows, image_ids = list(views), table["image_id"].to_pylist()
        errors: dict[int, tuple[str, str]] = {}
        latents = np.zeros((len(table), *self.latent_shape), np.float16)
        moments = np.zeros((len(table), 1 + self.flip, 2 * self.train_shape[0], *self.train_shape[1:]), np.float16)

        def encode(batch: range, size: int) -> tuple[list[int], torch.Tensor, torch.Tensor]:
            good = {}
            for row in rows[batch.start : batch.stop]:
                try:
                    good[row] = views[row].result()
                except images.ImageError as error:
                    errors[row] = (error.reason, str(error))
            return list(good), *self._moments(list(good.values()), size)

        # The numbers of all batches are on their way before the first is waited for.
        for good, train, square in list(self.batches.run(len(rows), encode)):
            self._store(latents, moments, image_ids, good, train, square)
        for row in self._not_finite(latents, moments):
            with stable_diffusion.in_float32(self.vae):
                train, square = self._moments([views[row].result()], 1)
            self._store(latents, moments, image_ids, [row], train, square)
        for row in self._not_finite(latents, moments):
            errors[row] = ("not_finite", "the VAE makes numbers of it that are not finite, also in float32")
            latents[row], moments[row] = 0, 0
        table = schemas.reject(table, errors).drop_columns("image")
        table = schemas.with_column(table, "latent", schemas.tensor_array(latents))
        return schemas.with_column(table, "train_moments", schemas.tensor_array(moments))

    def _make_views(self, content: bytes) -> Views:
        image, size = images.decode(content), self.settings.resolution
        crop = images.center_crop(image, self.settings.train_resolution)
        is_same = size == self.settings.train_resolution and image.width == image.height
        return Views(crop, None if is_same else images.square(image, size))

    def _moments(self, views: Sequence[Views], size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode the views of n images in one batch padded to `size`.

        Returns the moments of the training views (n, 1 or 2, 2c, h', w') and of the square views (n, 2c, h, w), on the
        device of the VAE.
        """
        if not views:
            return torch.zeros(0), torch.zeros(0)
        crops = self._padded([view.crop for view in views], size)
        train = [stable_diffusion.encode(self.vae, crops, flip) for flip in (False, True)[: 1 + self.flip]]
        different = [row for row, view in enumerate(views) if view.square is not None]
        plain = train[0][: len(views)]
        if not different:
            return torch.stack(train, dim=1)[: len(views)], plain
        squares = self._padded([square for view in views if (square := view.square) is not None], size)
        moments = stable_diffusion.encode(self.vae, squares)[: len(different)]
        if len(different) < len(views):
            moments = plain.index_copy(0, torch.tensor(different, device=plain.device), moments)
        return torch.stack(train, dim=1)[: len(views)], moments

    def _padded(self, pixels: Sequence[images.Pixels], size: int) -> images.Pixels:
        return np.stack([pixels[row] for row in stable_diffusion.padded(range(len(pixels)), size)])

    def _store(
        self,
        latents: npt.NDArray[np.float16],
        moments: npt.NDArray[np.float16],
        image_ids: Sequence[str],
        rows: Sequence[int],
        train: torch.Tensor,
        square: torch.Tensor,
    ) -> None:
        """Store the results of some rows, whose numbers the device may still be computing."""
        if rows:
            with np.errstate(over="ignore"):  # infinite in float16: not finite
                latents[rows] = self._sample(square.cpu(), [image_ids[row] for row in rows])
                moments[rows] = train.cpu().numpy()

    def _not_finite(self, latents: npt.NDArray[np.float16], moments: npt.NDArray[np.float16]) -> list[int]:
        """List the rows with a number that is not finite."""
        finite = [np.isfinite(values).all(axis=tuple(range(1, values.ndim))) for values in (latents, moments)]
        rows: list[int] = np.flatnonzero(~(finite[0] & finite[1])).tolist()
        return rows

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
