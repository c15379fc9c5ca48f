"""Tests of reading a distilled set: shown prototypes, nearest real images, outliers, totals."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.stages.report.small_report import png
from vlcp_ray.schemas import IMAGES, SYNTHETIC, conform, tensor_array
from vlcp_ray.stages.prototype import MEMBERS, prototypes_schema
from vlcp_ray.stages.report.contents import DistilledSet
from vlcp_ray.stages.report.distilled_sets import read_members, read_set, read_sizes, shown_prototypes
from vlcp_ray.stages.report.sets_section import Budget
from vlcp_ray.store.artifact import Artifact, Step, Store

CLASSES, IMAGES_PER_CLASS, IPC = 4, 12, 2
OUTLIERS = (10, 11)  # numbers of the outliers of each class
ALL, FEW = Budget(sets=1, seeds=1), Budget(sets=60, seeds=1)  # FEW shows the first 3 classes and 1 cluster of each


def image(label: int, number: int) -> bytes:
    return png(label * IMAGES_PER_CLASS + number)


def images() -> pa.Table:
    rows = [
        {"image_id": f"{label}-{number:02}", "label": label, "class_name": f"class {label}", "split": "train"}
        | {"image": image(label, number), "source": "a test"}
        for label in range(CLASSES)
        for number in range(IMAGES_PER_CLASS)
    ]
    return conform(pa.Table.from_pylist(rows), IMAGES)


def members() -> pa.Table:
    """Images of even and odd numbers are clusters 0 and 1; the distance grows with the number."""
    rows = [
        {"image_id": f"{label}-{number:02}", "label": label, "distance": number / 2}
        | {"cluster": -1 if number in OUTLIERS else number % IPC}
        for label in range(CLASSES)
        for number in range(IMAGES_PER_CLASS)
    ]
    return conform(pa.Table.from_pylist(rows), MEMBERS)


def prototypes() -> pa.Table:
    labels, clusters = (axis.ravel().tolist() for axis in np.mgrid[:CLASSES, :IPC])
    columns = {
        "prototype_id": [f"{label:04d}-{cluster:04d}" for label, cluster in zip(labels, clusters, strict=True)],
        "label": labels,
        "class_name": [f"class {label}" for label in labels],
        "cluster": clusters,
        "size": [5] * len(labels),
        "latent": tensor_array(np.arange(4 * len(labels), dtype=np.float32).reshape(-1, 4, 1, 1)),
        "text": ["a round digit"] * len(labels),
        "text_image_id": ["0-00"] * len(labels),
        "words": [["round"]] * len(labels),
    }
    return conform(pa.table(columns), prototypes_schema((4, 1, 1)))


def synthetic(value: int) -> pa.Table:
    """SYNTHETIC of the prototypes: images of one grey value."""
    columns = {name: prototypes()[name] for name in ("prototype_id", "label", "class_name", "text")}
    columns["image_id"] = columns["prototype_id"]
    count = len(columns["label"])
    columns |= {"split": ["train"] * count, "image": [png(value)] * count, "seed": [0] * count}
    return conform(pa.table(columns), SYNTHETIC)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.at(str(tmp_path_factory.mktemp("root")))


@pytest.fixture(scope="module")
def prototype_artifact(store: Store) -> Artifact:
    artifact = store.artifact(Step("prototype", 1, {}))
    artifact.write_table("prototypes/0.parquet", prototypes())
    artifact.write_table("members/0.parquet", members())
    return artifact


def read(store: Store, prototypes: Artifact, budget: Budget, *, detailed: bool) -> DistilledSet:
    artifacts = {name: store.artifact(Step(name, 1, {})) for name in ("ingest", "generate", "select")}
    artifacts["ingest"].write_table("images/0.parquet", images())
    artifacts["generate"].write_table("synthetic/0.parquet", synthetic(1))
    artifacts["select"].write_table("synthetic/0.parquet", synthetic(2))
    return read_set(
        {"seed": 3, "ipc": IPC},
        artifacts["generate"],
        prototypes,
        artifacts["ingest"],
        artifacts["select"],
        budget,
        1000,
        detailed=detailed,
    )


def test_read_set_has_the_nearest_images_of_each_prototype(store: Store, prototype_artifact: Artifact) -> None:
    nearest = read(store, prototype_artifact, ALL, detailed=True).nearest
    assert nearest.column_names == ["prototype_id", "image_id", "image", "distance"]
    rows = nearest.sort_by([("prototype_id", "ascending"), ("distance", "ascending")]).to_pylist()
    assert [row["image_id"] for row in rows[:6]] == ["0-00", "0-02", "0-04", "0-01", "0-03", "0-05"]
    assert len(rows) == 3 * CLASSES * IPC
    assert rows[4]["image"] == image(0, 3)


def test_read_set_has_the_outliers_of_each_class(store: Store, prototype_artifact: Artifact) -> None:
    distilled = read(store, prototype_artifact, ALL, detailed=True)
    assert distilled.outliers is not None
    rows = distilled.outliers.sort_by([("label", "ascending"), ("distance", "descending")]).to_pylist()
    assert [row["image_id"] for row in rows] == [f"{label}-{n}" for label in range(CLASSES) for n in (11, 10)]
    assert rows[0]["image"] == image(0, 11)
    assert distilled.outlier_counts == dict.fromkeys(range(CLASSES), 2)


def test_read_set_has_synthetic_and_decoded_images(store: Store, prototype_artifact: Artifact) -> None:
    distilled = read(store, prototype_artifact, ALL, detailed=True)
    assert set(distilled.synthetic["image"].to_pylist()) == {png(1)}
    assert distilled.centroids is not None
    assert set(distilled.centroids["image"].to_pylist()) == {png(2)}
    assert "latent" not in distilled.prototypes.column_names
    assert (distilled.seed, distilled.ipc, distilled.n_bytes) == (3, IPC, 1000)


def test_read_set_without_detail_has_neither_real_nor_decoded_images(
    store: Store, prototype_artifact: Artifact
) -> None:
    distilled = read(store, prototype_artifact, ALL, detailed=False)
    assert distilled.outliers is not None
    assert (len(distilled.nearest), len(distilled.outliers), distilled.centroids) == (0, 0, None)
    assert distilled.outlier_counts == dict.fromkeys(range(CLASSES), 2)
    assert len(distilled.synthetic) == CLASSES * IPC


def test_read_set_of_many_sets_reads_few_classes_and_counts_all(store: Store, prototype_artifact: Artifact) -> None:
    distilled = read(store, prototype_artifact, FEW, detailed=True)
    for table in (distilled.prototypes, distilled.synthetic, distilled.outliers):
        assert set(table["label"].to_pylist()) == {0, 1, 2}
    assert (distilled.n_classes, distilled.n_images) == (CLASSES, CLASSES * IPC)


def test_shown_prototypes_and_members_are_of_the_shown_classes(prototype_artifact: Artifact) -> None:
    sizes = read_sizes(prototype_artifact)
    assert shown_prototypes(prototype_artifact, FEW, sizes)["label"].to_pylist() == [0, 0, 1, 1, 2, 2]
    labels, rows = read_members(prototype_artifact, FEW, sizes)
    assert labels.to_pylist() == [0, 1, 2]
    assert len(rows) == 3 * IMAGES_PER_CLASS


def test_read_set_of_classes_without_outliers_counts_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store.at(str(tmp_path_factory.mktemp("root")))
    artifact = store.artifact(Step("prototype", 1, {}))
    artifact.write_table("prototypes/0.parquet", prototypes())
    inliers = members().filter(pc.or_(pc.greater_equal(members()["cluster"], 0), pc.equal(members()["label"], 1)))
    artifact.write_table("members/0.parquet", inliers)
    assert read(store, artifact, ALL, detailed=True).outlier_counts == {0: 0, 1: 2, 2: 0, 3: 0}
    artifact.write_table("members/0.parquet", inliers.filter(pc.greater_equal(inliers["cluster"], 0)))
    distilled = read(store, artifact, ALL, detailed=True)
    assert distilled.outlier_counts == dict.fromkeys(range(CLASSES), 0)
    assert distilled.outliers is not None
    assert len(distilled.outliers) == 0


def test_read_set_has_three_nearest_images_and_eight_outliers_with_ties_by_image_id(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = Store.at(str(tmp_path_factory.mktemp("root")))
    artifact = store.artifact(Step("prototype", 1, {}))
    artifact.write_table("prototypes/0.parquet", prototypes())
    same = members().set_column(3, "distance", pa.array([1.0] * len(members()), pa.float32()))
    outside = pa.array([0, *[-1] * 11] * CLASSES, pa.int32())
    artifact.write_table("members/0.parquet", same)
    nearest = read(store, artifact, ALL, detailed=True).nearest.sort_by("image_id")
    assert nearest.filter(pc.equal(nearest["prototype_id"], "0000-0000"))["image_id"].to_pylist() == [
        "0-00",
        "0-02",
        "0-04",
    ]
    artifact.write_table("members/0.parquet", same.set_column(2, "cluster", outside))
    outliers = read(store, artifact, ALL, detailed=True).outliers
    assert outliers is not None
    of_class = outliers.filter(pc.equal(outliers["label"], 2)).sort_by("image_id")
    assert of_class["image_id"].to_pylist() == [f"2-{number:02}" for number in range(1, 9)]
