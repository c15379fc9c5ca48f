"""Tests of t-SNE: which images are plotted, how clusters and centres lie, the same positions every time."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray.schemas import tensor_array
from vlcp_ray.stages.prototype import Prototype
from vlcp_ray.stages.prototype.cluster import prototype
from vlcp_ray.stages.report.tsne import MAX_POINTS, _fit, _plotted_rows, layout, plot, read_latents
from vlcp_ray.store.artifact import Artifact, Step, Store


def blobs(n: int = 40, d: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents of two clusters, the cluster of each, and their centres."""
    random = np.random.default_rng(0)
    centres = random.normal(0, 10, (2, d)).astype(np.float32)
    clusters = (np.arange(2 * n) % 2).astype(np.int32)
    latents = centres[clusters] + random.normal(size=(2 * n, d)).astype(np.float32)
    return latents, clusters, centres


def test_layout_keeps_clusters_together_around_their_centres() -> None:
    latents, clusters, centres = blobs()
    rows, positions = layout(latents, clusters, centres, 1, 0, 1000)
    assert rows.tolist() == list(range(80))
    assert positions.centres_before is None
    radii = [np.linalg.norm(positions.points[clusters == c] - positions.centres[c], axis=1).max() for c in (0, 1)]
    assert max(radii) < np.linalg.norm(positions.centres[0] - positions.centres[1])


def test_layout_with_outliers_has_centres_without_outlier_removal() -> None:
    latents, clusters, centres = blobs()
    clusters[[3, 8]] = -1
    _, positions = layout(latents, clusters, centres, 1, 0, 1000)
    assert positions.centres_before is not None
    assert positions.centres_before.shape == positions.centres.shape == (2, 2)


def test_layout_of_the_same_latents_has_the_same_positions() -> None:
    latents, clusters, centres = blobs(20)
    first, second = (layout(latents, clusters, centres, 1, 7, 30)[1] for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)


def test_layout_of_many_images_keeps_evenly_spaced_ones_and_all_outliers() -> None:
    latents, clusters, centres = blobs()
    clusters[[1, 2, 77]] = -1
    rows, positions = layout(latents, clusters, centres, 1, 0, 10)
    assert {1, 2, 77} <= set(rows.tolist())
    assert len(rows) == len(positions.points) <= 13
    assert sorted(rows.tolist()) == rows.tolist()


def test_layout_of_one_or_of_equal_images_is_finite() -> None:
    one = np.ones((1, 4), np.float32)
    _, positions = layout(one, np.zeros(1, np.int32), one, 1, 0, 10)
    assert np.isfinite(positions.points).all()
    equal = np.ones((9, 4), np.float32)
    assert len(layout(equal, np.zeros(9, np.int32), one, 1, 0, 10)[1].points) == 9


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """PAIRS of two classes with more images than are plotted, and their PROTOTYPES and MEMBERS with outliers."""
    store = Store.at(str(tmp_path_factory.mktemp("root")))
    pairs, prototypes = (store.artifact(Step(stage, 1, {})) for stage in ("pair", "prototype"))
    random, count = np.random.default_rng(0), MAX_POINTS + 60
    for label in (0, 1):
        rows = pa.table(
            {
                "image_id": [f"{label}-{i:04}" for i in random.permutation(count)],
                "label": pa.array([label] * count, pa.int32()),
                "class_name": [f"class {label}"] * count,
                "caption": ["a round digit"] * count,
                "latent": tensor_array(random.normal(size=(count, 4, 2, 2)).astype(np.float16)),
            }
        )
        pairs.write_table(f"pairs/{label}.parquet", rows)
        table, members, _ = prototype(rows, Prototype(contamination=0.05, n_init=1), [(0, 3)])[0, 3]
        prototypes.write_table(f"prototypes/{label}.parquet", table)
        prototypes.write_table(f"members/{label}.parquet", members)
    return pairs, prototypes


def test_read_latents_reads_the_given_classes_only(artifacts: tuple[Artifact, Artifact]) -> None:
    latents = read_latents(artifacts[0], [1])
    assert latents.column_names == ["image_id", "label", "latent"]
    assert latents["label"].to_pylist() == [1] * (MAX_POINTS + 60)


def test_plot_has_the_images_outliers_and_centres_of_its_class(artifacts: tuple[Artifact, Artifact]) -> None:
    pairs, prototypes = artifacts
    count, latents = MAX_POINTS + 60, read_latents(pairs, [1, 0])
    label, shown = plot(latents, prototypes, 1, 1, 0)
    assert (label, shown.class_name) == (1, "class 1")
    assert plot(latents, prototypes, 0, 1, 0)[1].class_name == "class 0"
    assert (shown.total, len(shown.centres)) == (count, 3)
    assert int((shown.clusters < 0).sum()) == round(0.05 * count)
    assert shown.centres_before is not None
    assert MAX_POINTS <= len(shown.points) == len(shown.clusters) < count
    again = plot(read_latents(pairs, [1]), prototypes, 1, 1, 0)[1]
    assert again.points == pytest.approx(shown.points)


@pytest.mark.parametrize(
    ("count", "outliers", "rows"),
    [
        (3, [], [0, 1, 2]),
        (4, [], [0, 1, 2, 3]),
        (9, [], [0, 3, 5, 8]),
        (10, [], [0, 3, 6, 9]),
        (10, [1, 3], [0, 1, 3, 6, 9]),
        (10, range(5), [0, 1, 2, 3, 6, 9]),
    ],
)
def test_plotted_rows_are_evenly_spaced_with_outliers_up_to_the_limit(
    count: int, outliers: Sequence[int], rows: list[int]
) -> None:
    clusters = np.zeros(count, np.int32)
    clusters[list(outliers)] = -1
    assert _plotted_rows(clusters, 4).tolist() == rows


def test_layout_of_two_or_of_equal_rows_is_side_by_side() -> None:
    assert _fit(np.array([[1, 2], [3, 4]], np.float32), 0).tolist() == [[0, 0], [1, 0]]
    assert _fit(np.ones((4, 2), np.float32), 0).tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
    three = _fit(np.array([[0, 0], [1, 0], [0, 1]], np.float32), 0)
    assert three.shape == (3, 2)
    assert np.ptp(three, axis=0).all()  # fitted


def test_layout_centres_before_are_those_of_k_means_with_outliers() -> None:
    """An outlier far away has a centre of its own as long as it is not removed."""
    latents, clusters, centres = blobs()
    latents[0], clusters[0] = 1000, -1
    rows, positions = layout(latents, clusters, centres, 3, 0, 1000)
    assert rows[0] == 0
    assert positions.centres_before is not None
    distances = np.linalg.norm(positions.centres_before - positions.points[0], axis=1)
    others = np.linalg.norm(positions.centres - positions.points[0], axis=1)
    assert distances.min() < others.min()
