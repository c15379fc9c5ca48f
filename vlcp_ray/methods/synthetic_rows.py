"""Rows of SYNTHETIC: from images that were generated from prototypes, from pixels, or from real images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL import Image

from vlcp_ray import images
from vlcp_ray.schemas import SYNTHETIC, conform, reject, with_column

if TYPE_CHECKING:
    from vlcp_ray.models.stable_diffusion import Pictures


def as_synthetic(table: pa.Table) -> pa.Table:
    """Convert rows of IMAGES to rows of SYNTHETIC: the same pixels as PNG, generated from no prototype."""
    pngs = [images.encode_png(np.asarray(images.decode(data))) for data in table["image"].to_pylist()]
    columns = {"image": pngs, "prototype_id": [""] * len(table), "text": [""] * len(table), "seed": [0] * len(table)}
    for name, values in columns.items():
        table = with_column(table, name, pa.array(values, SYNTHETIC.field(name).type))
    return conform(table, SYNTHETIC)


def from_pixels(
    kind: str, classes: Sequence[tuple[int, str]], numbers: Sequence[int], pixels: images.Pixels, seed: int
) -> pa.Table:
    """Make rows of SYNTHETIC from the pixels of images that were made from no prototype.

    Args:
        kind: prefix of the image_ids.
        classes: label and class name of each image.
        numbers: the number of each image in its class.
        pixels: (n, h, w, 3) uint8.
        seed: of the set.
    """
    columns = {
        "image_id": [f"{kind}-{label:04d}-{number:04d}" for (label, _), number in zip(classes, numbers, strict=True)],
        "label": [label for label, _ in classes],
        "class_name": [name for _, name in classes],
        "split": ["train"] * len(pixels),
        "image": [images.encode_png(image) for image in pixels],
        "prototype_id": [""] * len(pixels),
        "text": [""] * len(pixels),
        "seed": [seed] * len(pixels),
    }
    return conform(pa.table(columns), SYNTHETIC)


def from_prototypes(
    table: pa.Table, kind: str, pictures: "Pictures", size: int, texts: list[str], seeds: list[int]
) -> pa.Table:
    """Add the columns of SYNTHETIC to rows of PROTOTYPES: see `from_pictures`.

    Args:
        kind: prefix of the image_ids.
    """
    image_ids = [f"{kind}-{prototype_id}" for prototype_id in table["prototype_id"].to_pylist()]
    table = with_column(table, "source", table["prototype_id"])
    return from_pictures(table, image_ids, pictures, size, texts, seeds)


def from_pictures(
    table: pa.Table, image_ids: list[str], pictures: "Pictures", size: int, texts: list[str], seeds: list[int]
) -> pa.Table:
    """Add the columns of SYNTHETIC to rows, and reject images that are not finite; other columns stay.

    Args:
        table: rows with label, class_name and source: what each image is made from.
        image_ids: of the images.
        pictures: the generated images.
        size: height and width to which they are resized, in pixels.
        texts: the text that guided each of them.
        seeds: the seed of each image's noise.
    """
    columns = {
        "image_id": image_ids,
        "split": ["train"] * len(table),
        "image": [images.encode_png(_resize(image, size)) for image in pictures.pixels],
        "text": texts,
        "seed": seeds,
    }
    for name, values in columns.items():
        table = with_column(table, name, pa.array(values, SYNTHETIC.field(name).type))
    detail = "the model's numbers are not finite, also in float32: is it fine-tuned with too high a learning rate?"
    return reject(table, dict.fromkeys(pictures.not_finite, ("not_finite", detail)))


def _resize(pixels: images.Pixels, size: int) -> images.Pixels:
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
