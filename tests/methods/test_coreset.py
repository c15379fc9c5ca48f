"""Tests of the methods that make sets of one class through a teacher, on real digits."""

from collections.abc import Callable
from pkgutil import resolve_name

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from torch import nn

from vlcp_ray.config import Job, load_job
from vlcp_ray.demo import digits
from vlcp_ray.images import decode
from vlcp_ray.methods import METHODS
from vlcp_ray.methods.herding import herding
from vlcp_ray.methods.k_center import k_center
from vlcp_ray.methods.method import Run
from vlcp_ray.methods.moderate import moderate
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.models.teacher import features
from vlcp_ray.schemas import SYNTHETIC

JOB = load_job("jobs/digits-compare.toml", ["teach.width=8", "evaluate.factor=2"])
RUNS = [(seed, ipc) for seed in (0, 1) for ipc in (1, 4)]
BY_CLASS = [method for method in METHODS.values() if method.form == "class"]
methods = pytest.mark.parametrize("name", [method.name for method in BY_CLASS])


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in digits.rows("val") if row["label"] == 3]).sort_by("image_id")


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return build_classifier("ConvNet-3", num_classes=10, input_size=32, width=8, seed=0, norm="batch").eval()


def select(
    name: str, rows: pa.Table, teacher: nn.Module, runs: list[Run] = RUNS, job: Job = JOB
) -> dict[Run, pa.Table]:
    sets: dict[Run, pa.Table] = resolve_name(METHODS[name].code)(rows, runs, teacher, job, "cpu")
    return sets


@methods
def test_select_images_gives_ipc_rows_of_synthetic_for_every_run(name: str, rows: pa.Table, teacher: nn.Module) -> None:
    sets = select(name, rows, teacher)
    assert set(sets) == set(RUNS)
    for (_, ipc), table in sets.items():
        assert table.schema == SYNTHETIC
        assert len(table) == ipc
        assert set(table["class_name"].to_pylist()) == {"digit three"}
        assert all(decode(image).size == (32, 32) for image in table["image"].to_pylist())


@methods
def test_select_images_is_the_same_for_one_run_or_many(name: str, rows: pa.Table, teacher: nn.Module) -> None:
    sets = select(name, rows, teacher)
    assert all(select(name, rows, teacher, [run])[run].equals(sets[run]) for run in RUNS)


@pytest.mark.parametrize("name", ["herding", "k-center", "moderate"])
def test_select_images_by_features_nests_sizes_and_ignores_the_seed(
    name: str, rows: pa.Table, teacher: nn.Module
) -> None:
    sets = select(name, rows, teacher)
    ids = {run: table["image_id"].to_pylist() for run, table in sets.items()}
    assert ids[0, 1] == ids[0, 4][:1]
    assert set(ids[0, 4]) <= set(rows["image_id"].to_pylist())
    assert sets[0, 4].equals(sets[1, 4])


@pytest.mark.parametrize(("name", "rule"), [("herding", herding), ("k-center", k_center), ("moderate", moderate)])
def test_select_images_are_those_that_the_method_selects_by_the_features_of_the_teacher(
    name: str, rule: Callable[[npt.NDArray[np.float32], int], list[int]], rows: pa.Table, teacher: nn.Module
) -> None:
    job = load_job("jobs/digits-compare.toml", ["teach.width=8", "teach.input_size=32"])
    pixels = np.stack([np.asarray(decode(image)) for image in rows["image"].to_pylist()])
    chosen = rule(features(teacher, pixels.transpose(0, 3, 1, 2), "cpu"), 4)
    (made,) = select(name, rows, teacher, [(0, 4)], job).values()
    assert made["image_id"].to_pylist() == rows["image_id"].take(chosen).to_pylist()


def test_select_images_of_rded_takes_other_crops_for_another_seed(rows: pa.Table, teacher: nn.Module) -> None:
    sets = select("rded", rows, teacher)
    assert not sets[0, 4]["image"].equals(sets[1, 4]["image"])


@pytest.mark.parametrize("name", ["herding", "k-center", "moderate"])
def test_select_images_of_too_small_a_class_is_refused(name: str, rows: pa.Table, teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match="3 images are fewer than ipc = 4"):
        select(name, rows.slice(0, 3), teacher)


def test_select_images_of_shuffled_rows_is_the_same_once_sorted(rows: pa.Table, teacher: nn.Module) -> None:
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows))).sort_by("image_id")
    for method in BY_CLASS:
        one, two = select(method.name, rows, teacher), select(method.name, shuffled, teacher)
        assert all(one[run].equals(two[run]) for run in RUNS)
