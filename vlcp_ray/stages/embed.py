"""Knows how the latents of a class are laid on a plane to be looked at: t-SNE, as in the appendix's figure 2."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

#: t-SNE of raw latents of 16,384 values takes minutes; their first 50 principal components are its authors' advice.
_COMPONENTS: Final = 50
_PERPLEXITY: Final = 30.0


@dataclass(frozen=True)
class Embedding:
    """Places on one plane: `points` (m, 2), `centres` (k, 2) and `centres_before` (k, 2) or None."""

    points: Floats
    centres: Floats
    centres_before: Floats | None


def embed(
    latents: Floats, clusters: Integers, centres: Floats, n_init: int, seed: int, most: int
) -> tuple[Integers, Embedding]:
    """Lay the images of one class and their centres on a plane.

    Args:
        latents: (n, d), sorted by image_id.
        clusters: (n,), -1 for an outlier. Where there is one, k-means of all images, with the job's settings, says
            where the centres would be without outlier removal, and everything shares one plane.
        centres: (k, d), the centroids of the inliers.
        n_init, seed: of k-means; the seed is t-SNE's too.
        most: images that are laid out: all outliers and every so manyth image; t-SNE's time grows with their square.

    Returns the rows (m,) that were laid out, ascending, and their places.

    One thread does all the work, so that the same latents have the same places.
    """
    # scikit-learn takes seconds to import, which `plan` would have to wait for.
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        before: list[Floats] = []
        if (clusters < 0).any():
            kmeans = KMeans(n_clusters=len(centres), n_init=n_init, random_state=seed).fit(latents)
            before = [kmeans.cluster_centers_.astype(np.float32)]
        rows = _shown(clusters, most)
        places = _tsne(np.concatenate([latents[rows], centres, *before]), seed)
    points, after, old = np.split(places, [len(rows), len(rows) + len(centres)])
    return rows, Embedding(points, after, old if before else None)


def _shown(clusters: Integers, most: int) -> Integers:
    every = np.linspace(0, len(clusters) - 1, min(len(clusters), most)).round().astype(np.int32)
    rows: Integers = np.union1d(every, np.flatnonzero(clusters < 0)[:most]).astype(np.int32)
    return rows


def _tsne(rows: Floats, seed: int) -> Floats:
    """(n, d) as (n, 2); all at one place where no two rows differ, as nothing can be laid out then."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(rows) < 3 or not np.ptp(rows, axis=0).any():
        return np.stack([np.arange(len(rows)), np.zeros(len(rows))], 1).astype(np.float32)
    components = min(_COMPONENTS, *rows.shape)
    if rows.shape[1] > components:
        rows = PCA(components, random_state=seed).fit_transform(rows)
    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
    options: dict[str, Any] = {"init": "pca", "learning_rate": "auto", "n_jobs": 1}
    placed: Floats = TSNE(2, perplexity=perplexity, random_state=seed, **options).fit_transform(rows)
    return placed
