"""Tests of the ZCA whitening: kornia's formula, and its inverse."""

import numpy as np
import torch

from vlcp_ray.scoring.whitening import fit

PIXELS = np.random.default_rng(0).integers(0, 256, (200, 3, 4, 4), dtype=np.uint8)


def test_fit_is_the_whitening_of_kornia() -> None:
    """`zca_mean` of kornia 0.8 with eps 0.1: divided by n - 1, by the singular values of the covariance."""
    vectors = torch.from_numpy(PIXELS).double().div(255).flatten(1)
    centred = vectors - vectors.mean(0)
    u, s, _ = torch.linalg.svd(centred.T @ centred / (len(vectors) - 1))
    found = fit(PIXELS)
    assert np.allclose(found.matrix, u @ torch.diag((s + 0.1).rsqrt()) @ u.T)
    assert np.allclose(found.inverse, u @ torch.diag((s + 0.1).sqrt()) @ u.T)
    assert np.allclose(found.mean, vectors.mean(0))


def test_inverse_restores_images_up_to_the_rounding_of_float32() -> None:
    found, vectors = fit(PIXELS), PIXELS.reshape(200, -1) / 255
    whitened = ((vectors - found.mean) @ found.matrix).astype(np.float32)
    assert (np.rint((whitened @ found.inverse + found.mean) * 255) == PIXELS.reshape(200, -1)).all()


def test_fit_of_images_in_several_blocks_is_that_of_all_at_once() -> None:
    many = np.random.default_rng(1).integers(0, 256, (2500, 1, 2, 2), dtype=np.uint8)
    covariance = np.cov(many.reshape(2500, -1) / 255, rowvar=False)
    found = fit(many)
    assert np.allclose(found.inverse @ found.inverse, covariance + 0.1 * np.eye(4))
