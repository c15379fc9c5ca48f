"""t-SNE of the latents of a class, as in figure 2 of the paper's appendix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.schemas import tensors
from vlcp_ray.stages.pair import PAIRS
from vlcp_ray.stages.prototype import MEMBERS, PROTOTYPES
from vlcp_ray.stages.report.contents import TsnePlot
from vlcp_ray.store.artifact import Artifact

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

#: t-SNE of raw latents of 16,384 values takes minutes; its authors advise the first 50 principal components.
_COMPONENTS: Final = 50
_PERPLEXITY: Final = 30.0
#: Images of a class that are plotted, beside its outliers; the time of t-SNE grows with the square of this number.
MAX_POINTS: Final = 240


@dataclass(frozen=True)
class TsneLayout:
    """Positions of one t-SNE.

    Args:
        points: (m, 2), of the images.
        centres: (k, 2), of the centroids of the inliers.
        centres_before: (k, 2), of the centroids without outlier removal; None where there are no outliers.
    """

    points: Floats
    centres: Floats
    centres_before: Floats | None


def read_latents(pairs: Artifact, labels: Sequence[int]) -> pa.Table:
    """Read image_id, label and latent of some classes."""
    return pairs.rows("pairs", PAIRS, ["image_id", "label", "latent"], "label", pa.array(labels, pa.int32()))


def plot(latents: pa.Table, prototypes: Artifact, label: int, n_init: int, seed: int) -> tuple[int, TsnePlot]:
    """Lay out one class for its plot.

    Args:
        latents: rows of `read_latents`, of this class and others.
        prototypes: the artifact with PROTOTYPES and MEMBERS.
        n_init: of k-means without outlier removal.
        seed: of this k-means and of t-SNE.

    Returns the label and its plot.
    """
    of_class = pa.array([label], pa.int32())
    rows = latents.filter(pc.equal(latents["label"], label)).sort_by("image_id")
    members = prototypes.rows("members", MEMBERS, ["image_id", "cluster"], "label", of_class).sort_by("image_id")
    columns = ["label", "class_name", "cluster", "latent"]
    centroids = prototypes.rows("prototypes", PROTOTYPES, columns, "label", of_class).sort_by("cluster")
    clusters = members["cluster"].to_numpy()
    values = tensors(rows["latent"]).reshape(len(rows), -1).astype(np.float32)
    centres = tensors(centroids["latent"]).reshape(len(centroids), -1)
    plotted, positions = layout(values, clusters, centres, n_init, seed, MAX_POINTS)
    class_name = centroids["class_name"][0].as_py()
    return label, TsnePlot(
        class_name, positions.points, clusters[plotted], positions.centres, positions.centres_before, len(rows)
    )


def layout(
    latents: Floats, clusters: Integers, centres: Floats, n_init: int, seed: int, max_points: int
) -> tuple[Integers, TsneLayout]:
    """Lay out the images of one class and their centres in two dimensions, the same way for the same latents.

    Args:
        latents: (n, d), sorted by image_id.
        clusters: (n,), -1 for an outlier. If there are outliers, k-means on all images, with the job's settings, finds
            the centres without outlier removal, and they are part of the same t-SNE.
        centres: (k, d), the centroids of the inliers.
        n_init: of k-means.
        seed: of k-means and of t-SNE.
        max_points: limit on the images, evenly spaced, and on the outliers, which are always among them.

    Returns the rows (m,) that are laid out, ascending, and their positions.
    """
    # scikit-learn takes seconds to import, which would delay `plan`.
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # One thread, so that the same latents always have the same positions.
    with threadpool_limits(limits=1):
        before: list[Floats] = []
        if (clusters < 0).any():
            kmeans = KMeans(n_clusters=len(centres), n_init=n_init, random_state=seed).fit(latents)
            before = [kmeans.cluster_centers_.astype(np.float32)]
        rows = _plotted_rows(clusters, max_points)
        positions = _fit(np.concatenate([latents[rows], centres, *before]), seed)
    points, after, without_removal = np.split(positions, [len(rows), len(rows) + len(centres)])
    return rows, TsneLayout(points, after, without_removal if before else None)


def _plotted_rows(clusters: Integers, max_points: int) -> Integers:
    """Evenly spaced rows and all outliers, at most `max_points` of each."""
    spaced = np.linspace(0, len(clusters) - 1, min(len(clusters), max_points)).round().astype(np.int32)
    rows: Integers = np.union1d(spaced, np.flatnonzero(clusters < 0)[:max_points]).astype(np.int32)
    return rows


def _fit(rows: Floats, seed: int) -> Floats:
    """Map (n, d) to (n, 2); too few or equal rows, which cannot be fitted, are placed side by side."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(rows) < 3 or not np.ptp(rows, axis=0).any():
        return np.stack([np.arange(len(rows)), np.zeros(len(rows))], 1).astype(np.float32)
    components = min(_COMPONENTS, *rows.shape)
    if rows.shape[1] > components:
        rows = PCA(components, random_state=seed).fit_transform(rows)
    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
    options: dict[str, Any] = {"init": "pca", "learning_rate": "auto", "n_jobs": 1}
    positions: Floats = TSNE(2, perplexity=perplexity, random_state=seed, **options).fit_transform(rows)
    return positions
