"""Tests of the list of compared methods."""

import inspect
from dataclasses import asdict
from pkgutil import resolve_name

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlcp_ray.config import Job, load_job
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.methods import METHODS
from vlcp_ray.methods.method import Method, Part, partition
from vlcp_ray.pipeline import graph
from vlcp_ray.settings import build
from vlcp_ray.stages import evaluate, generate, ingest, select
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.stages.prototype import RECIPE
from vlcp_ray.stages.stage import Load

JOB = load_job("jobs/digits-compare.toml")
PARAMETERS = {
    "prototypes": ["job", "batch_size"],
    "ids": ["index", "seed", "ipc"],
    "class": ["rows", "runs", "teacher", "job", "device"],
    "labels": ["job", "models", "batch_size"],
    "partition": ["rows", "part", "teacher", "job", "device"],
}


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_method_code_has_the_parameters_of_its_form(method: Method) -> None:
    if method.form in PARAMETERS:
        assert list(inspect.signature(resolve_name(method.code)).parameters) == PARAMETERS[method.form]
    else:
        assert method.code == ""


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_method_settings_name_the_base_model_unless_a_model_or_images_are_inputs(method: Method) -> None:
    settings = method.settings(JOB, "hash")
    assert ("base_model" in settings) == ("prototypes" in method.inputs and "model" not in method.inputs)
    assert method.summary
    assert method.source


@given(st.integers(1, 300), st.integers(1, 60))
def test_partition_has_the_fewest_parts_of_nearly_equal_size(classes: int, most: int) -> None:
    labels = list(range(7, 7 + classes))
    parts = partition(labels, most)
    sizes = [len(part) for part in parts]
    assert [label for part in parts for label in part] == labels
    assert max(sizes) <= most
    assert (len(parts) - 1) * most < classes
    assert max(sizes) - min(sizes) <= 1


def test_part_has_the_seed_of_its_sets_and_a_file_of_its_own() -> None:
    parts = [Part((3, 4), ((9, 1), (9, 5))), Part((3, 4), ((9, 5),), 1), Part((5, 6), ((9, 5),))]
    assert {part.seed for part in parts} == {9}
    assert len({part.file for part in parts}) == 3


def test_d4m_has_its_own_guidance_and_clusters_all_images() -> None:
    method = METHODS["d4m"]
    assert method.settings(JOB, "hash")["guidance_scale"] == 8.0
    assert method.clustering(JOB)["contamination"] == 0.0


def test_d4m_clusters_in_mini_batches_as_released_unless_the_job_asks_for_k_means() -> None:
    released = METHODS["d4m"].clustering(JOB)
    assert released["mini_batches"] == {"images_per_cluster": 1, "random_state": 0}
    assert "n_init" not in released
    full = METHODS["d4m"].clustering(load_job("jobs/digits-compare.toml", ["compare.d4m_clustering=k-means"]))
    assert full == JOB.prototype.model_copy(update={"contamination": 0.0}).model_dump() | {"recipe": asdict(RECIPE)}


def test_clustering_of_d4m_changes_the_sets_of_d4m_only() -> None:
    jobs = (JOB, load_job("jobs/digits-compare.toml", ["compare.d4m_clustering=k-means"]))
    by_set = [
        {(step.stage, *step.key.values()): step.fingerprint for step in graph(job) if "method" in step.key}
        for job in jobs
    ]
    assert by_set[0].keys() == by_set[1].keys()
    assert {key for key in by_set[0] if by_set[0][key] != by_set[1][key]} == {key for key in by_set[0] if "d4m" in key}


def test_rded_hashes_its_crops_and_their_pool() -> None:
    settings = METHODS["rded"].settings(JOB, "hash")
    assert (settings["crops"], settings["pool"], tuple(settings["crop_scale"])) == (5, 300, (0.08, 1.0))


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_method_clustering_is_that_of_the_job_but_for_d4m(method: Method) -> None:
    job = JOB.model_copy(update={"prototype": JOB.prototype.model_copy(update={"contamination": 0.25})})
    if method.name != "d4m":
        assert method.clustering(job) == job.prototype.model_dump() | {"recipe": asdict(RECIPE)}


def test_generated_methods_differ_in_text_and_model_only() -> None:
    generate = JOB.generate.model_dump()
    assert METHODS["vlcp"].settings(JOB, "hash") == generate | {"text": "text"}
    assert METHODS["vlcp-name"].settings(JOB, "hash") == generate | {"text": "class_name"}
    assert METHODS["base-text"].settings(JOB, "hash") == generate | {"text": "text", "base_model": "hash"}
    assert METHODS["base-name"].settings(JOB, "hash") == generate | {"text": "class_name", "base_model": "hash"}
    assert METHODS["centroid"].settings(JOB, "hash") == {"image_size": 32, "base_model": "hash"}


def loads_of(name: str) -> tuple[CostInputs, Load]:
    """The one load of the sets of a method: ipc 1 and 16 with three seeds, of 10 classes, and two teachers."""
    job = load_job("jobs/digits-compare.toml", ["ipc=[1, 16]", 'teach.network=["ConvNet-3", "ResNet-18-modified"]'])
    inputs = CostInputs.for_job(job, Expect(train=1000, val=100, classes=10, gib=1))
    steps = [step for step in graph(job) if step.key.get("method") == name and step.stage == "select"]
    assert sorted((step.key["seed"], step.key["ipc"]) for step in steps) == [
        (s, ipc) for s in (0, 1, 2) for ipc in (1, 16)
    ]
    (load,) = METHODS[name].loads(inputs, steps)
    assert load.images == 3 * (1 + 16) * 10
    return inputs, load


def test_select_loads_the_base_model_for_methods_that_are_made_from_prototypes() -> None:
    names = ("mgd3", "mgd3-text", "centroid", "random")
    jobs = {name: build(Job, {"name": "x", "compare": {"methods": [name]}}, "x") for name in names}
    uses = {name: list(select.STAGE.models(jobs[name])) for name in names}
    assert [use.field for use in uses["mgd3"]] == ["base_model"]
    assert uses["mgd3"] == uses["mgd3-text"] == uses["centroid"]
    assert uses["random"] == []


def test_loads_of_mode_guidance_are_the_denoising_of_every_step_with_guidance() -> None:
    inputs, load = loads_of("mgd3")
    settings = inputs.job.compare.mgd3
    calls = settings.num_inference_steps * (1 + (settings.guidance_scale > 1))
    each = calls * inputs.models.denoise(4) + inputs.models.decode(4) + inputs.models.embed_text()
    assert (load.work, load.images) == (generate.DENOISE, 510)
    assert load.amount == pytest.approx(510 * each)


@pytest.mark.parametrize("name", ["herding", "k-center", "moderate"])
def test_loads_of_methods_by_features_are_a_pass_over_every_training_image(name: str) -> None:
    inputs, load = loads_of(name)
    teach = inputs.job.teach
    each = inputs.models.classify(teach.network[0], teach.input_size, teach.width, 10, "batch")
    assert (load.work, load.amount, load.units) == (evaluate.CLASSIFY, 1000 * each, 10)


def test_loads_of_rded_are_five_crops_of_300_images_of_every_class_and_seed() -> None:
    inputs, load = loads_of("rded")
    teach = inputs.job.teach
    each = inputs.models.classify(teach.network[0], teach.input_size, teach.width, 10, "batch")
    assert (load.work, load.amount, load.units) == (evaluate.CLASSIFY, 3 * 10 * 300 * 5 * each, 10)


def test_loads_of_random_and_centroid_are_an_image_each() -> None:
    _, random = loads_of("random")
    assert (random.work, random.amount, random.units) == (ingest.READ, 510, 510)
    inputs, centroid = loads_of("centroid")
    assert (centroid.work, centroid.amount, centroid.units) == (select.DECODE, 510 * inputs.models.decode(4), 510)
