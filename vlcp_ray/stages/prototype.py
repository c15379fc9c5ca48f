"""Knows how the images of one class become image and text prototypes, for every wanted seed and number per class."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray import config
from vlcp_ray.schemas import MEMBERS, prototypes_schema, tensor_array, tensors
from vlcp_ray.text import Choice, Words, choose_text, count_words

Floats: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.integer[Any]]
Run: TypeAlias = tuple[int, int]  # seed, ipc


@dataclass(frozen=True)
class Images:
    """The images of one class: inliers by image_id, then outliers by image_id."""

    label: int
    class_name: str
    shape: tuple[int, int, int]
    image_ids: Sequence[str]
    captions: Sequence[str]
    latents: Floats  # (n, c * h * w)
    points: Floats  # (n, n or c * h * w, the smaller): the latents turned, with the same distances
    n_inliers: int


@dataclass(frozen=True)
class Clusters:
    """A partition of the inliers; clusters are numbered in the order of their first members' image_ids."""

    centroids: Floats  # (ipc, c * h * w)
    labels: Labels  # (n_inliers,)


def prototype(table: pa.Table, settings: config.Prototype, runs: Sequence[Run]) -> dict[Run, tuple[pa.Table, pa.Table]]:
    """Make the prototypes of one class (METHOD 2.4, 2.5).

    Args:
        table: all rows of one class, in any order: image_id, label, class_name, caption and latent of PAIRS.
        settings: of the stage. LOF takes one neighbour fewer than there are images where n_neighbors is more; a single
            image is no outlier.
        runs: the wanted (seed, ipc). Outliers and words do not depend on them and are found once.

    Returns:
        For each run PROTOTYPES, ipc rows by cluster, and MEMBERS, a row for each of the table's by image_id. Nothing
        depends on the order of rows or runs; clusters are numbered in the order of their first members' image_ids.

    Raises:
        ValueError: the table holds no class or several, an image_id twice, or a latent that is not finite; or there are
            fewer usable or fewer different latents than ipc. The message names the class and the cure.

    One thread does all the work: OpenMP adds partial sums in the order in which threads finish, so that centroids
    would differ from run to run, and its threads wait for each other (1300 x 16384 values, 10 clusters, 2 busy cores:
    2 s with one thread, 94 s with two). Classes are what runs in parallel.
    """
    # scikit-learn takes seconds to import, which `plan` would have to wait for.
    from sklearn import config_context

    # Every latent is looked at in `_load`; scikit-learn would look again at each of its own calls.
    with _threads().limit(limits=1), config_context(assume_finite=True, skip_parameter_validation=True):
        images = _outliers_last(_load(table), settings)
        for _, ipc in runs:
            _check_enough(images, ipc)
        inlier_captions = images.captions[: images.n_inliers]
        words = count_words(inlier_captions, images.class_name, settings.max_df, settings.matching)
        return {(seed, ipc): _run(images, words, settings, seed, ipc) for seed, ipc in runs}


@lru_cache(maxsize=1)
def _threads() -> Any:
    """The thread pools of this process; to look for them takes as long as a small class."""
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401  # their pools must be there
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _run(images: Images, words: Words, settings: config.Prototype, seed: int, ipc: int) -> tuple[pa.Table, pa.Table]:
    clusters = _cluster(images, settings.n_init, seed, ipc)
    distances = _distances(images, clusters)
    choices = []
    for cluster in range(ipc):
        members = np.flatnonzero(clusters.labels == cluster)
        choices.append(choose_text(words, members, distances[members], settings.n_words))
    return _prototypes(images, clusters, choices), _members(images, clusters, distances)


def _load(table: pa.Table) -> Images:
    classes = (
        table.select(["label", "class_name"])
        .group_by(["label", "class_name"], use_threads=False)
        .aggregate([])
        .to_pylist()
    )
    if len(classes) != 1:
        raise ValueError(f"prototype takes all images of one class, not of {len(classes)}: {classes[:3]}")
    label, class_name = classes[0]["label"], classes[0]["class_name"]
    order = pc.sort_indices(table["image_id"])
    image_ids = table["image_id"].take(order).to_pylist()
    latents = tensors(table["latent"]).reshape(len(table), -1)[order.to_numpy()].astype(np.float32, copy=False)
    for image_id, following in pairwise(image_ids):
        if image_id == following:
            raise ValueError(f"class {class_name!r}: image_id {image_id!r} occurs twice, give each image its own")
    finite = np.isfinite(latents).all(axis=1)
    if not finite.all():
        first = image_ids[int(finite.argmin())]
        raise ValueError(f"class {class_name!r}: the latent of image_id {first!r} is not finite, encode it anew")
    shape = tuple(table.schema.field("latent").type.shape)
    captions = table["caption"].take(order).to_pylist()
    return Images(label, class_name, shape, image_ids, captions, latents, _turned(latents), len(image_ids))


def _turned(latents: Floats) -> Floats:
    """Points with the distances of the latents, in no more dimensions than there are points.

    LOF and k-means know nothing but distances. n points lie in a subspace of n dimensions: R of the QR decomposition
    holds their coordinates there. Of 1,300 latents of 16,384 values that leaves a thirteenth of the work, and each
    distance is the same up to rounding (2e-7 of the largest).
    """
    from scipy.linalg import qr

    n, d = latents.shape
    if n >= d:
        return latents
    (_, _), r = qr((latents - latents.mean(axis=0)).T, mode="raw", overwrite_a=True, check_finite=False)
    return np.ascontiguousarray(r.T)


def _outliers_last(images: Images, settings: config.Prototype) -> Images:
    n = len(images.image_ids)
    if settings.contamination == 0 or n == 1:
        return images
    outlier = _outliers(images, settings.contamination, min(settings.n_neighbors, n - 1))
    order = np.argsort(outlier, kind="stable")
    latents = images.latents[order]  # one more copy for a moment, so that the inliers are a view in every run
    return replace(
        images,
        image_ids=[images.image_ids[i] for i in order],
        captions=[images.captions[i] for i in order],
        latents=latents,
        points=latents if images.points is images.latents else images.points[order],
        n_inliers=n - int(outlier.sum()),
    )


def _outliers(images: Images, contamination: float, n_neighbors: int) -> npt.NDArray[np.bool_]:
    from sklearn.neighbors import LocalOutlierFactor

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Duplicate values", category=UserWarning)
        try:
            found = LocalOutlierFactor(n_neighbors=n_neighbors, contamination=contamination).fit_predict(images.points)
        except UserWarning as warning:
            raise ValueError(
                f"class {images.class_name!r}: more than prototype.n_neighbors = {n_neighbors} images have the same "
                "latent, which makes outliers meaningless: remove the duplicates or raise n_neighbors"
            ) from warning
    outlier: npt.NDArray[np.bool_] = found == -1
    return outlier


def _check_enough(images: Images, ipc: int) -> None:
    n, total = images.n_inliers, len(images.image_ids)
    if n < ipc:
        raise ValueError(
            f"class {images.class_name!r} has {n} usable images ({total - n} of {total} are outliers), fewer than "
            f"ipc = {ipc}: lower ipc, lower prototype.contamination or add images"
        )


def _cluster(images: Images, n_init: int, seed: int, ipc: int) -> Clusters:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    inliers = images.points[: images.n_inliers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters than ipc are an error below
        kmeans = KMeans(n_clusters=ipc, n_init=n_init, random_state=seed).fit(inliers)
    found, first = np.unique(kmeans.labels_, return_index=True)
    if len(found) < ipc:
        raise ValueError(
            f"class {images.class_name!r} has {images.n_inliers} usable images, but only {len(found)} different "
            f"latents, fewer than ipc = {ipc}: lower ipc or replace duplicate images"
        )
    order = np.argsort(first)
    labels = np.argsort(order)[kmeans.labels_]
    if images.points is images.latents:
        return Clusters(kmeans.cluster_centers_[order], labels)
    members = (images.latents[: images.n_inliers][labels == cluster] for cluster in range(ipc))
    return Clusters(np.stack([own.mean(axis=0) for own in members]), labels)


def _distances(images: Images, clusters: Clusters) -> Floats:
    """(n,) of each inlier to its own centroid, of each outlier to the nearest."""
    inliers, outliers = np.split(images.latents, [images.n_inliers])
    own = np.empty(len(inliers), dtype=np.float32)
    nearest = np.full(len(outliers), np.inf, dtype=np.float32)
    for cluster, centroid in enumerate(clusters.centroids):
        members = clusters.labels == cluster
        own[members] = np.linalg.norm(inliers[members] - centroid, axis=1)
        nearest = np.minimum(nearest, np.linalg.norm(outliers - centroid, axis=1))
    return np.concatenate([own, nearest])


def _prototypes(images: Images, clusters: Clusters, choices: Sequence[Choice]) -> pa.Table:
    ipc = len(choices)
    columns = {
        "prototype_id": [f"{images.label:04d}-{cluster:04d}" for cluster in range(ipc)],
        "label": [images.label] * ipc,
        "class_name": [images.class_name] * ipc,
        "cluster": np.arange(ipc),
        "size": np.bincount(clusters.labels, minlength=ipc),
        "latent": tensor_array(clusters.centroids.reshape(ipc, *images.shape)),
        "text": [images.captions[choice.row] for choice in choices],
        "text_image_id": [images.image_ids[choice.row] for choice in choices],
        "words": [list(choice.words) for choice in choices],
    }
    return pa.table(columns, schema=prototypes_schema(images.shape))


def _members(images: Images, clusters: Clusters, distances: Floats) -> pa.Table:
    n_outliers = len(images.image_ids) - images.n_inliers
    columns = {
        "image_id": images.image_ids,
        "label": [images.label] * len(images.image_ids),
        "cluster": np.concatenate([clusters.labels, np.full(n_outliers, -1)]),
        "distance": distances,
    }
    return pa.table(columns, schema=MEMBERS).sort_by("image_id")
