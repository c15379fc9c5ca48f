"""Tests of the specification of prototype: its groups of steps and its costs."""

from dataclasses import asdict

import pytest

from vlcp_ray.config import Job
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.pipeline import graph
from vlcp_ray.settings import build
from vlcp_ray.stages import prototype
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.stages.prototype import RECIPE, STAGE, MiniBatches, Recipe, cluster_flops, group_by_settings
from vlcp_ray.store.artifact import Step

IMAGES = Expect(train=1000, val=100, classes=4, gib=1)


def make_steps(**settings: object) -> tuple[CostInputs, list[Step]]:
    size = {"resolution": 32, "train_resolution": 32}
    demo = {"base_model": "demo/stable_diffusion", "encode": size, "caption": {"model": "demo/llava"}}
    job = build(Job, {"name": "x", "seeds": [0, 1], "ipc": [1, 5], **demo, **settings}, "x")
    return CostInputs.for_job(job, IMAGES), [step for step in graph(job) if step.stage == STAGE.name]


def test_group_by_settings_puts_seeds_and_ipc_in_one_group() -> None:
    _, steps = make_steps()
    ((settings, mini_batches, group),) = group_by_settings(steps)
    assert mini_batches is None
    assert {(step.key["seed"], step.key["ipc"]) for step in group} == {(0, 1), (0, 5), (1, 1), (1, 5)}
    assert settings.model_dump() | {"recipe": asdict(RECIPE)} == dict(steps[0].settings)


def test_prototypes_with_other_limits_of_very_long_captions_are_other_artifacts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fingerprints = set()
    for recipe in (RECIPE, Recipe(long=1_501), Recipe(times_median=5)):
        monkeypatch.setattr(prototype, "RECIPE", recipe)
        _, steps = make_steps(compare={"methods": ["vlcp", "d4m"]}, prototype={"contamination": 0.1})
        fingerprints.update(step.fingerprint for step in steps)
    assert len(fingerprints) == 3 * len(steps)


def test_group_by_settings_separates_other_contamination() -> None:
    # d4m clusters all images, vlcp without outliers.
    compare = {"methods": ["vlcp", "d4m"], "d4m_clustering": "k-means"}
    _, steps = make_steps(compare=compare, prototype={"contamination": 0.1})
    groups = group_by_settings(steps)
    assert {(group.settings.contamination, group.mini_batches) for group in groups} == {(0.0, None), (0.1, None)}
    assert sum(len(group.steps) for group in groups) == len(steps) == 8


def test_group_by_settings_separates_mini_batches_which_have_no_n_init() -> None:
    groups = []
    for n_init in (3, 4):
        _, steps = make_steps(compare={"methods": ["vlcp", "d4m"]}, prototype={"n_init": n_init})
        groups.append({group.mini_batches: group for group in group_by_settings(steps)})
    assert set(groups[0]) == {None, MiniBatches()}
    one, other = ({kind: {step.fingerprint for step in group.steps} for kind, group in g.items()} for g in groups)
    assert one[MiniBatches()] == other[MiniBatches()]
    assert not one[None] & other[None]


def test_full_k_means_of_d4m_without_outliers_shares_the_prototypes_of_vlcp() -> None:
    _, steps = make_steps(compare={"methods": ["vlcp", "d4m"], "d4m_clustering": "k-means"})
    assert len(steps) == 4
    assert len(make_steps(compare={"methods": ["vlcp", "d4m"]})[1]) == 8


def test_prototype_loads_add_up_clusters_of_all_runs() -> None:
    inputs, steps = make_steps(prototype={"n_init": 3, "contamination": 0.0})
    (load,) = STAGE.loads(inputs, steps)
    assert load.images == 1000
    assert load.amount == pytest.approx(4 * cluster_flops(4 * 4 * 4, 250, 2 * (1 + 5), 3))


def test_prototype_loads_with_contamination_add_distances_of_pairs() -> None:
    amounts = []
    for contamination in (0.0, 0.1):
        (load,) = STAGE.loads(*make_steps(prototype={"contamination": contamination}))
        amounts.append(load.amount)
    assert amounts[1] - amounts[0] == pytest.approx(4 * 2 * (4 * 4 * 4) * 250**2)


def test_prototype_loads_of_mini_batches_are_two_passes() -> None:
    (load,) = STAGE.loads(*make_steps(compare={"methods": ["d4m"]}))
    values, images, clusters = 4 * 4 * 4, 250, 2 * (1 + 5)
    assert load.amount == pytest.approx(4 * 2 * values * images * clusters * 2)
