"""Tests of the clustering of a class, against scikit-learn and plain means."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.neighbors import LocalOutlierFactor

from tests.engine.clock import set_clock
from vlcp_ray.schemas import tensor_array, tensors
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages.prototype import MEMBERS, MiniBatches, Prototype, prototypes_schema
from vlcp_ray.stages.prototype import cluster as cluster_module
from vlcp_ray.stages.prototype.cluster import prototype, reduce_dimensions

SHAPE = (4, 2, 2)
NO_OUTLIERS = Prototype(n_init=2)
OUTLIERS = Prototype(contamination=0.1, n_init=2)


def make_latents(n: int, seed: int = 0) -> npt.NDArray[np.float16]:
    return np.random.default_rng(seed).normal(size=(n, *SHAPE)).astype(np.float16)


def make_pairs(values: npt.NDArray[np.float16], captions: list[str] | None = None) -> pa.Table:
    """Rows of class 7, already in the order of image_id."""
    n = len(values)
    columns = {
        "image_id": [f"img-{i:04d}" for i in range(n)],
        "label": pa.array([7] * n, pa.int32()),
        "class_name": ["fan"] * n,
        "caption": captions or [f"shade{chr(97 + i % 26)} round" for i in range(n)],
        "latent": tensor_array(values),
    }
    return pa.table(columns)


def flatten(values: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    return values.reshape(len(values), -1).astype(np.float32)


def column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table[name].to_numpy()
    return values


def tables_of(
    table: pa.Table, runs: list[tuple[int, int]], mini_batches: MiniBatches | None = None
) -> dict[tuple[int, int], tuple[pa.Table, pa.Table]]:
    """PROTOTYPES and MEMBERS of each run, without the seconds."""
    made = prototype(table, OUTLIERS, runs, mini_batches)
    return {run: (tables.prototypes, tables.members) for run, tables in made.items()}


def test_prototype_tables_have_schemas_and_ids() -> None:
    prototypes, members, _ = prototype(make_pairs(make_latents(30)), OUTLIERS, [(0, 3)])[0, 3]
    assert prototypes.schema.equals(prototypes_schema(SHAPE), check_metadata=True)
    assert members.schema.equals(MEMBERS, check_metadata=True)
    prototypes.validate(full=True)
    assert prototypes["prototype_id"].to_pylist() == ["0007-0000", "0007-0001", "0007-0002"]
    assert prototypes["cluster"].to_pylist() == [0, 1, 2]
    assert set(prototypes["label"].to_pylist()) == set(members["label"].to_pylist()) == {7}
    assert members["image_id"].to_pylist() == [f"img-{i:04d}" for i in range(30)]


def test_prototype_centroids_equal_scikit_learn_kmeans() -> None:
    values = make_latents(40)
    prototypes, members, _ = prototype(make_pairs(values), NO_OUTLIERS, [(3, 4)])[3, 4]
    kmeans = KMeans(n_clusters=4, n_init=2, random_state=3).fit(flatten(values))
    clusters = column(members, "cluster")
    for cluster in range(4):
        numbers = kmeans.labels_[clusters == cluster]
        assert len(set(numbers)) == 1
        centroid = kmeans.cluster_centers_[numbers[0]]
        np.testing.assert_allclose(tensors(prototypes["latent"])[cluster].ravel(), centroid, atol=1e-5)
    np.testing.assert_array_equal(column(prototypes, "size"), np.bincount(clusters))


@pytest.mark.parametrize("parameters", [NO_OUTLIERS, OUTLIERS], ids=["all", "inliers"])
def test_prototype_of_latents_padded_with_zeros_gives_same_clusters(parameters: Prototype) -> None:
    """Padded latents have more values than there are images, so that their dimensions are reduced."""
    values = make_latents(60)
    padded = np.pad(values, [(0, 0), (0, 0), (0, 0), (0, 8)])
    assert padded[0].size > len(padded) > values[0].size
    prototypes, members, _ = prototype(make_pairs(values), parameters, [(3, 4)])[3, 4]
    padded_prototypes, padded_members, _ = prototype(make_pairs(padded), parameters, [(3, 4)])[3, 4]
    assert members.drop_columns("distance").equals(padded_members.drop_columns("distance"))
    np.testing.assert_allclose(column(padded_members, "distance"), column(members, "distance"), rtol=1e-5, atol=1e-6)
    unpadded = tensors(padded_prototypes["latent"])[..., : values.shape[3]]
    np.testing.assert_allclose(unpadded, tensors(prototypes["latent"]), atol=1e-5)
    assert padded_prototypes["text"].equals(prototypes["text"])


def test_prototype_clusters_are_numbered_by_first_member() -> None:
    for seed in range(5):
        _, members, _ = prototype(make_pairs(make_latents(40)), NO_OUTLIERS, [(seed, 4)])[seed, 4]
        clusters = column(members, "cluster").tolist()
        firsts = [clusters.index(cluster) for cluster in range(4)]
        assert firsts == sorted(firsts)


def test_prototype_with_ipc_1_is_mean_latent() -> None:
    values = make_latents(20)
    prototypes, members, _ = prototype(make_pairs(values), NO_OUTLIERS, [(0, 1)])[0, 1]
    mean = flatten(values).mean(axis=0)
    np.testing.assert_allclose(tensors(prototypes["latent"])[0].ravel(), mean, atol=1e-6)
    distance = np.linalg.norm(flatten(values) - mean, axis=1)
    np.testing.assert_allclose(column(members, "distance"), distance, rtol=1e-5)


def test_prototype_with_ipc_of_all_images_gives_each_image() -> None:
    values = make_latents(5)
    prototypes, members, _ = prototype(make_pairs(values), NO_OUTLIERS, [(0, 5)])[0, 5]
    np.testing.assert_allclose(tensors(prototypes["latent"]), values, atol=1e-6)
    np.testing.assert_allclose(column(members, "distance"), 0, atol=1e-5)
    assert prototypes["text_image_id"].to_pylist() == members["image_id"].to_pylist()


@pytest.mark.parametrize("n", [2, 5, 11, 50])
def test_prototype_outliers_equal_scikit_learn_lof(n: int) -> None:
    values = make_latents(n, seed=1)
    prototypes, members, _ = prototype(make_pairs(values), OUTLIERS, [(0, 2)])[0, 2]
    expected = LocalOutlierFactor(n_neighbors=min(10, n - 1), contamination=0.1).fit_predict(flatten(values)) == -1
    np.testing.assert_array_equal(column(members, "cluster") == -1, expected)
    assert sum(prototypes["size"].to_pylist()) == n - expected.sum()
    if n == 50:
        assert expected.sum() == 5


def test_prototype_leaves_outliers_out_of_centroids_and_texts() -> None:
    values = make_latents(50)
    values[::10] *= 40
    captions = ["plain round" if i % 10 else "odd odd odd" for i in range(50)]
    prototypes, members, _ = prototype(make_pairs(values, captions), OUTLIERS, [(0, 3)])[0, 3]
    np.testing.assert_array_equal(np.flatnonzero(column(members, "cluster") == -1), np.arange(0, 50, 10))
    assert set(prototypes["text"].to_pylist()) == {"plain round"}
    centroids = tensors(prototypes["latent"]).reshape(3, -1)
    nearest = np.linalg.norm(flatten(values)[::10, None] - centroids, axis=2).min(axis=1)
    np.testing.assert_allclose(column(members, "distance")[::10], nearest, rtol=1e-5)


def test_prototype_leaves_outliers_out_of_document_frequency() -> None:
    values = make_latents(50)
    values[::10] *= 40
    captions = ["odd" if i % 10 == 0 else "common rare" if i < 36 else "rare" if i < 40 else "" for i in range(50)]
    captions[49] = "plain"
    prototypes, _, _ = prototype(make_pairs(values, captions), OUTLIERS, [(0, 1)])[0, 1]
    # "common" is in 32 of 45 captions of inliers (71 %) and in 64 % of all captions.
    assert prototypes["words"].to_pylist() == [["plain"]]


def test_prototype_text_is_caption_of_image_in_cluster() -> None:
    table = make_pairs(make_latents(40))
    prototypes, members, _ = prototype(table, OUTLIERS, [(0, 4)])[0, 4]
    cluster = dict(zip(members["image_id"].to_pylist(), members["cluster"].to_pylist(), strict=True))
    caption = dict(zip(table["image_id"].to_pylist(), table["caption"].to_pylist(), strict=True))
    for row in prototypes.to_pylist():
        assert cluster[row["text_image_id"]] == row["cluster"]
        assert caption[row["text_image_id"]] == row["text"]
        assert "round" not in row["words"]  # in every caption of the class


def test_prototype_without_words_takes_caption_of_nearest_image() -> None:
    captions = [f"{i}" for i in range(40)]
    prototypes, members, _ = prototype(make_pairs(make_latents(40), captions), NO_OUTLIERS, [(0, 4)])[0, 4]
    cluster, distance = column(members, "cluster"), column(members, "distance")
    nearest = [int(np.where(cluster == j, distance, np.inf).argmin()) for j in range(4)]
    assert prototypes["text"].to_pylist() == [captions[i] for i in nearest]


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(25)), st.integers(0, 3))
def test_prototype_of_permuted_rows_is_equal(order: list[int], seed: int) -> None:
    table = make_pairs(make_latents(25))
    chunks = pa.concat_tables([table.take(order[:9]), table.take(order[9:])])
    expected = tables_of(table, [(seed, 3)])
    assert tables_of(chunks, [(seed, 3)]) == expected


def test_prototype_of_several_runs_equals_single_runs_with_one_lof(monkeypatch: pytest.MonkeyPatch) -> None:
    table, runs = make_pairs(make_latents(40)), [(0, 2), (1, 2), (0, 5)]
    separate = {run: tables_of(table, [run])[run] for run in runs}
    calls = []
    fit_predict = LocalOutlierFactor.fit_predict

    def counting_fit_predict(self: LocalOutlierFactor, values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        calls.append(len(values))
        prediction: npt.NDArray[np.int64] = fit_predict(self, values)
        return prediction

    monkeypatch.setattr(LocalOutlierFactor, "fit_predict", counting_fit_predict)
    assert tables_of(table, runs) == separate
    assert calls == [40]


@pytest.mark.parametrize(("mini_batches", "work"), [(None, "_cluster"), (MiniBatches(), "_cluster_mini_batches")])
def test_prototype_seconds_are_those_of_each_run_and_a_part_of_what_they_share(
    mini_batches: MiniBatches | None, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where outliers take 9 s and k-means 2 s for each cluster."""
    clock = set_clock(monkeypatch, cluster_module.__name__)
    find_outliers, make_clusters = cluster_module._outliers_last, getattr(cluster_module, work)

    def slow_outliers(*arguments: Any) -> Any:
        clock.now += 9.0
        return find_outliers(*arguments)

    def slow_clusters(*arguments: Any) -> Any:
        clock.now += 2.0 * arguments[-1]
        return make_clusters(*arguments)

    monkeypatch.setattr(cluster_module, "_outliers_last", slow_outliers)
    monkeypatch.setattr(cluster_module, work, slow_clusters)
    made = prototype(make_pairs(make_latents(30)), OUTLIERS, [(0, 1), (0, 5), (1, 5)], mini_batches)
    seconds = {run: tables.seconds for run, tables in made.items()}
    assert seconds == {(0, 1): 3.0 + 2.0, (0, 5): 3.0 + 10.0, (1, 5): 3.0 + 10.0}
    assert sum(seconds.values()) == clock.now - 1000.0


def test_prototype_of_single_image_has_no_outlier() -> None:
    prototypes, members, _ = prototype(make_pairs(make_latents(1)), OUTLIERS, [(0, 1)])[0, 1]
    assert members["cluster"].to_pylist() == [0]
    assert prototypes["size"].to_pylist() == [1]


def test_prototype_of_fewer_images_than_ipc_raises_with_usable_count() -> None:
    fix = "lower ipc, lower prototype.contamination or add images"
    with pytest.raises(ValueError, match=rf"'fan' has 5 usable images \(0 of 5 are outliers\).* ipc = 6: {fix}"):
        prototype(make_pairs(make_latents(5)), NO_OUTLIERS, [(0, 2), (0, 6)])
    with pytest.raises(ValueError, match=r"'fan' has 18 usable images \(2 of 20 are outliers\)"):
        prototype(make_pairs(make_latents(20)), OUTLIERS, [(0, 19)])


def test_prototype_of_fewer_different_latents_than_ipc_raises() -> None:
    values = np.repeat(make_latents(3), 4, axis=0)
    with pytest.raises(
        ValueError, match=r"'fan' has 12 usable images, but only 3 different latents.* ipc = 4: lower ipc"
    ):
        prototype(make_pairs(values), NO_OUTLIERS, [(0, 4)])
    prototypes, _, _ = prototype(make_pairs(values), NO_OUTLIERS, [(0, 3)])[0, 3]
    assert prototypes["size"].to_pylist() == [4, 4, 4]


def test_prototype_of_more_duplicates_than_neighbors_raises() -> None:
    values = np.concatenate([np.repeat(make_latents(1), 15, axis=0), make_latents(10, seed=1)])
    with pytest.raises(ValueError, match=r"'fan': more than prototype.n_neighbors = 10 images have the same latent"):
        prototype(make_pairs(values), OUTLIERS, [(0, 2)])


def test_prototype_of_several_classes_or_none_raises() -> None:
    table = make_pairs(make_latents(4))
    several = table.set_column(2, "class_name", pa.array(["fan", "fan", "fin", "fan"]))
    with pytest.raises(ValueError, match=r"one class, not of 2: .*'fan'.*'fin'"):
        prototype(several, NO_OUTLIERS, [(0, 1)])
    with pytest.raises(ValueError, match="one class, not of 0"):
        prototype(table.slice(0, 0), NO_OUTLIERS, [(0, 1)])


def test_prototype_of_repeated_image_id_raises() -> None:
    table = make_pairs(make_latents(4))
    with pytest.raises(ValueError, match="'fan': image_id 'img-0001' occurs twice"):
        prototype(pa.concat_tables([table, table.slice(1, 1)]), NO_OUTLIERS, [(0, 1)])


def test_prototype_of_latent_with_nan_raises() -> None:
    values = make_latents(4)
    values[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="'fan': the latent of image_id 'img-0002' is not finite"):
        prototype(make_pairs(values), NO_OUTLIERS, [(0, 1)])


def test_reduce_dimensions_of_few_latents_keeps_distances() -> None:
    values = np.random.default_rng(0).normal(size=(20, 300)).astype(np.float32)
    reduced = reduce_dimensions(values)
    assert reduced.shape == (20, 20)
    distances, expected = (np.linalg.norm(points[:, None] - points, axis=2) for points in (reduced, values))
    np.testing.assert_allclose(distances, expected, atol=1e-4)


def test_reduce_dimensions_of_many_latents_returns_them() -> None:
    values = flatten(make_latents(40))
    assert reduce_dimensions(values) is values


def test_prototype_outliers_equal_their_definition() -> None:
    """Compute the local outlier factor of Breunig et al. 2000 in full, and take the tenth of the largest."""
    values = make_latents(50, seed=1)
    _, members, _ = prototype(make_pairs(values), OUTLIERS, [(0, 2)])[0, 2]
    points = flatten(values).astype(np.float64)
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(distance, np.inf)
    neighbours = distance.argsort(axis=1)[:, :10]
    k_distance = np.sort(distance, axis=1)[:, 9]
    reach = np.maximum(k_distance[neighbours], np.take_along_axis(distance, neighbours, axis=1))
    density = 1 / reach.mean(axis=1)
    factor = density[neighbours].mean(axis=1) / density
    largest = np.sort(factor.argsort()[-5:])
    np.testing.assert_array_equal(np.flatnonzero(column(members, "cluster") == -1), largest)


def taken_in_order(n: int, seed: int) -> list[int]:
    """The rows of `make_pairs` in the order in which mini-batches take them."""
    return sorted(range(n), key=lambda row: seed_for(seed, "mini-batches", f"img-{row:04d}"))


def mini_batch(
    values: npt.NDArray[np.float16], seed: int, ipc: int, images_per_cluster: int = 1
) -> tuple[npt.NDArray[np.float32], pa.Table, pa.Table]:
    """Cluster in mini-batches: the centroids (ipc, d) in the order of their values, PROTOTYPES and MEMBERS."""
    run = (seed, ipc)
    prototypes, members, _ = prototype(make_pairs(values), Prototype(), [run], MiniBatches(images_per_cluster))[run]
    centroids = tensors(prototypes["latent"]).reshape(ipc, -1)
    return centroids[np.lexsort(centroids.T)], prototypes, members


@pytest.mark.parametrize(("n", "ipc"), [(43, 4), (90, 10), (12, 12), (20, 1)])
def test_mini_batches_are_running_means_of_one_pass(n: int, ipc: int) -> None:
    """One pass by hand: the first ipc images are the centroids, and each image moves the nearest one to the mean of all
    that it has had; the nearest ones of a batch are found before any of it moves. From 100 images on scikit-learn may
    also start a centroid anew, one that has had less than a hundredth of the images of the largest."""
    values = make_latents(n, seed=n)
    order, latents = taken_in_order(n, 5), flatten(values).astype(np.float64)
    centroids, counts = latents[order[:ipc]].copy(), np.zeros(ipc)
    for start in range(0, n - ipc + 1, ipc):
        batch = latents[order[start : start + ipc]]
        nearest = np.linalg.norm(batch[:, None] - centroids, axis=2).argmin(axis=1)
        for cluster in range(ipc):
            own = batch[nearest == cluster]
            if len(own):
                centroids[cluster] = (centroids[cluster] * counts[cluster] + own.sum(axis=0)) / (
                    counts[cluster] + len(own)
                )
                counts[cluster] += len(own)
    computed, prototypes, members = mini_batch(values, 5, ipc)
    np.testing.assert_allclose(computed, centroids[np.lexsort(centroids.T)], atol=1e-5)
    own = tensors(prototypes["latent"]).reshape(ipc, -1)
    distance = np.linalg.norm(flatten(values)[:, None] - own, axis=2)
    np.testing.assert_array_equal(column(members, "cluster"), distance.argmin(axis=1))
    np.testing.assert_allclose(column(members, "distance"), distance.min(axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("images_per_cluster", [1, 3])
def test_mini_batches_equal_the_released_calls(images_per_cluster: int) -> None:
    """The calls of D4M's gen_prototype.py, on 600 images; a rest of ipc or more is fitted, a smaller one is not."""
    n, ipc = 606, 7
    values, size = make_latents(n), images_per_cluster * 7
    kmeans = MiniBatchKMeans(n_clusters=ipc, random_state=0, batch_size=size, n_init="auto")
    rows = flatten(values)[taken_in_order(n, 1)]
    for start in range(0, n, size):
        if len(rows[start : start + size]) >= ipc:
            kmeans.partial_fit(rows[start : start + size])
    expected = kmeans.cluster_centers_
    computed, _, _ = mini_batch(values, 1, ipc, images_per_cluster)
    np.testing.assert_allclose(computed, expected[np.lexsort(expected.T)], atol=1e-5)


def test_mini_batches_leave_out_a_rest_of_fewer_than_ipc_images() -> None:
    values, last = make_latents(43), taken_in_order(43, 0)[40:]
    changed = values.copy()
    changed[last] *= 3
    before, after = mini_batch(values, 0, 5)[0], mini_batch(changed, 0, 5)[0]
    np.testing.assert_array_equal(before, after)
    changed[taken_in_order(43, 0)[39]] *= 3
    assert (mini_batch(changed, 0, 5)[0] != before).any()


def test_mini_batches_are_independent_of_order_and_other_runs() -> None:
    table, runs = make_pairs(make_latents(50)), [(0, 4), (1, 4), (0, 7)]
    alone = {run: tables_of(table, [run], MiniBatches())[run] for run in runs}
    shuffled = table.take(np.random.default_rng(0).permutation(50))
    assert tables_of(shuffled, runs, MiniBatches()) == alone
    assert not alone[0, 4][0].equals(alone[1, 4][0])
    assert (column(alone[0, 4][1], "cluster") == -1).sum() == 5


def test_mini_batches_keep_a_centroid_that_no_image_is_nearest_to() -> None:
    captions = [f"shade{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    values = make_latents(60, seed=3)
    values.reshape(60, -1)[:, 1:] = 0
    first, second = taken_in_order(60, 0)[:2]
    values[second] = values[first]  # so that two centroids start at one image
    prototypes, members, _ = prototype(make_pairs(values, captions), Prototype(), [(0, 12)], MiniBatches())[0, 12]
    sizes = column(prototypes, "size")
    assert sizes.min() == 0
    np.testing.assert_array_equal(sizes, np.bincount(column(members, "cluster"), minlength=12))
    assert sizes[: (sizes > 0).sum()].min() > 0  # the empty ones come last
    centroid = tensors(prototypes["latent"])[11].ravel()
    nearest = int(np.linalg.norm(flatten(values) - centroid, axis=1).argmin())
    assert prototypes["text_image_id"][11].as_py() == f"img-{nearest:04d}"
    assert prototypes["text"][11].as_py() == captions[nearest]


def test_mini_batches_of_fewer_different_latents_than_ipc_raise() -> None:
    values = np.repeat(make_latents(3), 4, axis=0)
    with pytest.raises(ValueError, match="12 usable images, but only 3 different latents, fewer than ipc = 4"):
        mini_batch(values, 0, 4)
    with pytest.raises(ValueError, match=r"12 usable images .* fewer than ipc = 13"):
        mini_batch(values, 0, 13)
