"""Checks how latents are laid on a plane: who stays together, who is shown, the same places every time."""

import numpy as np

from vlcp_ray.stages.embed import embed


def blobs(n: int = 40, d: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    middles = random.normal(0, 10, (2, d)).astype(np.float32)
    clusters = (np.arange(2 * n) % 2).astype(np.int32)
    latents = middles[clusters] + random.normal(size=(2 * n, d)).astype(np.float32)
    return latents, clusters, middles


def test_clusters_stay_together_and_centres_lie_among_them() -> None:
    latents, clusters, middles = blobs()
    rows, laid = embed(latents, clusters, middles, 1, 0, 1000)
    assert rows.tolist() == list(range(80))
    assert laid.centres_before is None
    own = [np.linalg.norm(laid.points[clusters == c] - laid.centres[c], axis=1).max() for c in (0, 1)]
    assert max(own) < np.linalg.norm(laid.centres[0] - laid.centres[1])


def test_with_outliers_the_centres_of_all_images_share_the_plane() -> None:
    latents, clusters, middles = blobs()
    clusters[[3, 8]] = -1
    _, laid = embed(latents, clusters, middles, 1, 0, 1000)
    assert laid.centres_before is not None
    assert laid.centres_before.shape == laid.centres.shape == (2, 2)


def test_the_same_latents_have_the_same_places() -> None:
    latents, clusters, middles = blobs(20)
    first, second = (embed(latents, clusters, middles, 1, 7, 30)[1] for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)


def test_of_many_images_every_so_manyth_and_all_outliers_are_shown() -> None:
    latents, clusters, middles = blobs()
    clusters[[1, 2, 77]] = -1
    rows, laid = embed(latents, clusters, middles, 1, 0, 10)
    assert {1, 2, 77} <= set(rows.tolist())
    assert len(rows) == len(laid.points) <= 13
    assert sorted(rows.tolist()) == rows.tolist()


def test_a_class_too_small_or_too_alike_to_be_laid_out_still_has_places() -> None:
    one = np.ones((1, 4), np.float32)
    _, laid = embed(one, np.zeros(1, np.int32), one, 1, 0, 10)
    assert np.isfinite(laid.points).all()
    alike = np.ones((9, 4), np.float32)
    assert len(embed(alike, np.zeros(9, np.int32), one, 1, 0, 10)[1].points) == 9
