"""Cluster the latents of one class: image and text prototypes for each (seed, ipc)."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.schemas import tensor_array, tensors
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.prototype import MEMBERS, MiniBatches, Prototype, prototypes_schema
from vlcp_ray.stages.prototype.text_prototype import (
    CandidateWords,
    TextPrototype,
    choose_text_prototype,
    find_candidate_words,
)

Floats: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.integer[Any]]
Run: TypeAlias = tuple[int, int]  # seed, ipc


@dataclass(frozen=True)
class ClassImages:
    """The images of one class: inliers by image_id, then outliers by image_id."""

    label: int
    class_name: str
    shape: tuple[int, int, int]
    image_ids: Sequence[str]
    captions: Sequence[str]
    latents: Floats  # (n, c * h * w)
    points: Floats  # (n, min(n, c * h * w)): `reduce_dimensions` of the latents, or the latents
    n_inliers: int


@dataclass(frozen=True)
class Clusters:
    """A partition of the inliers, numbered in the order of the first members' image_ids, clusters without any last."""

    centroids: Floats  # (ipc, c * h * w)
    labels: Labels  # (n_inliers,)


class ClassPrototypes(NamedTuple):
    """What one run makes of a class: PROTOTYPES and MEMBERS.

    Args:
        seconds: that it took, with an equal part of what is computed once for all runs.
    """

    prototypes: pa.Table
    members: pa.Table
    seconds: float


def prototype(
    table: pa.Table, settings: Prototype, runs: Sequence[Run], mini_batches: MiniBatches | None = None
) -> dict[Run, ClassPrototypes]:
    """Compute the prototypes of one class.

    Args:
        table: all rows of one class, in any order: image_id, label, class_name, caption and latent of PAIRS.
        settings: of the stage. LOF uses min(n_neighbors, images - 1) neighbours; a single image is no outlier.
        runs: the wanted (seed, ipc). Outliers and candidate words do not depend on them and are computed once.
        mini_batches: for k-means in one pass over mini-batches (`_cluster_mini_batches`); none: full k-means.

    Returns:
        For each run PROTOTYPES, ipc rows by cluster, and MEMBERS, one row for each row of the table by image_id.
        No table depends on the order of rows or runs; clusters are numbered in the order of their first members'
        image_ids. A cluster without members, which only mini-batches leave, has the text of the image nearest to it.

    Raises:
        ValueError: the table holds no class or several, an image_id twice, or a latent that is not finite; or there are
            fewer usable or fewer different latents than ipc. The message names the class and the fix.

    Everything runs in one thread: OpenMP adds partial sums in the order in which threads finish, so that centroids
    would differ from run to run, and its threads wait for each other (1300 x 16384 values, 10 clusters, 2 busy cores:
    2 s with one thread, 94 s with two). Classes run in parallel instead.
    """
    # Imported here because it takes seconds, and `plan` must answer at once.
    from sklearn import config_context

    # `_load` checks every latent once; scikit-learn would check them in each of its calls.
    with _thread_pools().limit(limits=1), config_context(assume_finite=True, skip_parameter_validation=True):
        start = time.perf_counter()
        images = _outliers_last(_load(table, reduce=mini_batches is None), settings)
        for _, ipc in runs:
            _check_enough(images, ipc)
        inlier_captions = images.captions[: images.n_inliers]
        words = find_candidate_words(inlier_captions, images.class_name, settings.max_df, settings.matching)
        shared, made = (time.perf_counter() - start) / len(runs), {}
        for seed, ipc in runs:
            start = time.perf_counter()
            if mini_batches:
                clusters = _cluster_mini_batches(images, mini_batches, seed, ipc)
            else:
                clusters = _cluster(images, settings.n_init, seed, ipc)
            tables = _tables(images, words, clusters, settings.n_words)
            made[seed, ipc] = ClassPrototypes(*tables, shared + time.perf_counter() - start)
        return made


@lru_cache(maxsize=1)
def _thread_pools() -> Any:
    """Find the thread pools of this process once; it takes as long as clustering a small class."""
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401  # their thread pools must be loaded
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _tables(images: ClassImages, words: CandidateWords, clusters: Clusters, n_words: int) -> tuple[pa.Table, pa.Table]:
    """Make PROTOTYPES and MEMBERS of one run."""
    distances = _distances(images, clusters)
    texts = []
    for cluster, centroid in enumerate(clusters.centroids):
        members = np.flatnonzero(clusters.labels == cluster)
        if not len(members):
            members = np.linalg.norm(images.latents[: images.n_inliers] - centroid, axis=1).argmin(keepdims=True)
        try:
            texts.append(choose_text_prototype(words, members, distances[members], n_words))
        except ValueError as error:
            raise ValueError(f"class {images.class_name!r}: {error}") from error
    return _prototypes_table(images, clusters, texts), _members_table(images, clusters, distances)


def _load(table: pa.Table, reduce: bool) -> ClassImages:
    classes = (
        table.select(["label", "class_name"])
        .group_by(["label", "class_name"], use_threads=False)
        .aggregate([])
        .to_pylist()
    )
    if len(classes) != 1:
        raise ValueError(f"prototype expects all images of one class, not of {len(classes)}: {classes[:3]}")
    label, class_name = classes[0]["label"], classes[0]["class_name"]
    order = pc.sort_indices(table["image_id"])
    image_ids = table["image_id"].take(order).to_pylist()
    latents = tensors(table["latent"]).reshape(len(table), -1)[order.to_numpy()].astype(np.float32, copy=False)
    for image_id, next_id in pairwise(image_ids):
        if image_id == next_id:
            raise ValueError(f"class {class_name!r}: image_id {image_id!r} occurs twice, give each image its own")
    finite = np.isfinite(latents).all(axis=1)
    if not finite.all():
        first = image_ids[int(finite.argmin())]
        raise ValueError(
            f"class {class_name!r}: the latent of image_id {first!r} is not finite, encode the image again"
        )
    shape = tuple(table.schema.field("latent").type.shape)
    captions = table["caption"].take(order).to_pylist()
    points = reduce_dimensions(latents) if reduce else latents
    return ClassImages(label, class_name, shape, image_ids, captions, latents, points, len(image_ids))


def reduce_dimensions(latents: Floats) -> Floats:
    """Rotate n latents into an n-dimensional subspace that contains them (QR), if n is less than their dimensions.

    LOF and k-means use distances only, and these stay the same up to rounding (2e-7 of the largest). R of the QR
    decomposition holds the coordinates in the subspace. For 1,300 latents of 16,384 values a thirteenth of the work
    remains.

    Args:
        latents: (n, d).

    Returns:
        (n, min(n, d)).
    """
    from scipy.linalg import qr

    n, d = latents.shape
    if n >= d:
        return latents
    (_, _), r = qr((latents - latents.mean(axis=0)).T, mode="raw", overwrite_a=True, check_finite=False)
    return np.ascontiguousarray(r.T)


def _outliers_last(images: ClassImages, settings: Prototype) -> ClassImages:
    n = len(images.image_ids)
    if settings.contamination == 0 or n == 1:
        return images
    is_outlier = _find_outliers(images, settings.contamination, min(settings.n_neighbors, n - 1))
    order = np.argsort(is_outlier, kind="stable")
    latents = images.latents[order]  # a second copy for a short time, so that the inliers are a view in every run
    return replace(
        images,
        image_ids=[images.image_ids[i] for i in order],
        captions=[images.captions[i] for i in order],
        latents=latents,
        points=latents if images.points is images.latents else images.points[order],
        n_inliers=n - int(is_outlier.sum()),
    )


def _find_outliers(images: ClassImages, contamination: float, n_neighbors: int) -> npt.NDArray[np.bool_]:
    from sklearn.neighbors import LocalOutlierFactor

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Duplicate values", category=UserWarning)
        try:
            lof = LocalOutlierFactor(n_neighbors=n_neighbors, contamination=contamination)
            prediction = lof.fit_predict(images.points)
        except UserWarning as warning:
            raise ValueError(
                f"class {images.class_name!r}: more than prototype.n_neighbors = {n_neighbors} images have the same "
                "latent, so that outliers are undefined: remove the duplicates or raise n_neighbors"
            ) from warning
    is_outlier: npt.NDArray[np.bool_] = prediction == -1
    return is_outlier


def _check_enough(images: ClassImages, ipc: int) -> None:
    n, total = images.n_inliers, len(images.image_ids)
    if n < ipc:
        raise ValueError(
            f"class {images.class_name!r} has {n} usable images ({total - n} of {total} are outliers), fewer than "
            f"ipc = {ipc}: lower ipc, lower prototype.contamination or add images"
        )


def _cluster(images: ClassImages, n_init: int, seed: int, ipc: int) -> Clusters:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    inliers = images.points[: images.n_inliers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised below if there are fewer clusters than ipc
        kmeans = KMeans(n_clusters=ipc, n_init=n_init, random_state=seed).fit(inliers)
    numbers = np.unique(kmeans.labels_)
    if len(numbers) < ipc:
        raise _too_few_different(images, len(numbers), ipc)
    clusters = _number_by_first_member(kmeans.cluster_centers_, kmeans.labels_)
    if images.points is images.latents:
        return clusters
    inlier_latents = images.latents[: images.n_inliers]
    centroids = np.stack([inlier_latents[clusters.labels == cluster].mean(axis=0) for cluster in range(ipc)])
    return Clusters(centroids, clusters.labels)


def _cluster_mini_batches(images: ClassImages, mini_batches: MiniBatches, seed: int, ipc: int) -> Clusters:
    """Cluster the inliers by k-means in one pass over mini-batches, as D4M's gen_prototype.py does.

    Images are taken in an order that depends on the seed and their image_ids (D4M: that of its data loader). Each
    mini-batch is one `partial_fit`; a last one of fewer than ipc images is left out, as there. D4M fits a last one of
    ipc or more for its last class only, which its published script (`images_per_cluster` 1) never meets. Centroids are
    moving averages, not the means of the members, which are the images nearest to each.
    """
    from sklearn.cluster import MiniBatchKMeans

    inliers = images.latents[: images.n_inliers]
    by_hash = sorted(range(len(inliers)), key=lambda row: seed_for(seed, "mini-batches", images.image_ids[row]))
    size = mini_batches.images_per_cluster * ipc
    kmeans = MiniBatchKMeans(ipc, batch_size=size, random_state=mini_batches.random_state, n_init="auto")
    for start in range(0, len(inliers) - ipc + 1, size):
        kmeans.partial_fit(inliers[by_hash[start : start + size]])
    labels = kmeans.predict(inliers)
    if len(np.unique(labels)) < ipc and (different := len({row.tobytes() for row in inliers})) < ipc:
        raise _too_few_different(images, different, ipc)
    return _number_by_first_member(kmeans.cluster_centers_, labels)


def _number_by_first_member(centroids: Floats, labels: Labels) -> Clusters:
    first = np.full(len(centroids), len(labels))
    numbers, rows = np.unique(labels, return_index=True)
    first[numbers] = rows
    order = np.argsort(first, kind="stable")
    return Clusters(centroids[order], np.argsort(order)[labels])


def _too_few_different(images: ClassImages, different: int, ipc: int) -> ValueError:
    return ValueError(
        f"class {images.class_name!r} has {images.n_inliers} usable images, but only {different} different "
        f"latents, fewer than ipc = {ipc}: lower ipc or replace duplicate images"
    )


def _distances(images: ClassImages, clusters: Clusters) -> Floats:
    """Compute the distance of each inlier to its own centroid and of each outlier to the nearest one: (n,)."""
    inliers, outliers = np.split(images.latents, [images.n_inliers])
    own = np.empty(len(inliers), dtype=np.float32)
    nearest = np.full(len(outliers), np.inf, dtype=np.float32)
    for cluster, centroid in enumerate(clusters.centroids):
        members = clusters.labels == cluster
        own[members] = np.linalg.norm(inliers[members] - centroid, axis=1)
        nearest = np.minimum(nearest, np.linalg.norm(outliers - centroid, axis=1))
    return np.concatenate([own, nearest])


def _prototypes_table(images: ClassImages, clusters: Clusters, texts: Sequence[TextPrototype]) -> pa.Table:
    ipc = len(texts)
    columns = {
        "prototype_id": [f"{images.label:04d}-{cluster:04d}" for cluster in range(ipc)],
        "label": [images.label] * ipc,
        "class_name": [images.class_name] * ipc,
        "cluster": np.arange(ipc),
        "size": np.bincount(clusters.labels, minlength=ipc),
        "latent": tensor_array(clusters.centroids.reshape(ipc, *images.shape)),
        "text": [images.captions[text.row] for text in texts],
        "text_image_id": [images.image_ids[text.row] for text in texts],
        "words": [list(text.words) for text in texts],
    }
    return pa.table(columns, schema=prototypes_schema(images.shape))


def _members_table(images: ClassImages, clusters: Clusters, distances: Floats) -> pa.Table:
    n_outliers = len(images.image_ids) - images.n_inliers
    columns = {
        "image_id": images.image_ids,
        "label": [images.label] * len(images.image_ids),
        "cluster": np.concatenate([clusters.labels, np.full(n_outliers, -1)]),
        "distance": distances,
    }
    return pa.table(columns, schema=MEMBERS).sort_by("image_id")
