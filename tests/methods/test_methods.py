"""Tests of the list of compared methods."""

import inspect
from pkgutil import resolve_name

import pytest

from vlcp_ray.config import load_job
from vlcp_ray.methods import METHODS
from vlcp_ray.methods.method import Method

JOB = load_job("jobs/digits-compare.toml")
PARAMETERS = {
    "prototypes": ["job", "batch_size"],
    "ids": ["index", "seed", "ipc"],
    "class": ["rows", "runs", "teacher", "job", "device"],
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


def test_d4m_has_its_own_guidance_and_clusters_all_images() -> None:
    method = METHODS["d4m"]
    assert method.settings(JOB, "hash")["guidance_scale"] == 8.0
    assert method.clustering(JOB.model_copy(update={"prototype": JOB.prototype}))["contamination"] == 0.0


def test_rded_hashes_its_crops_and_their_pool() -> None:
    settings = METHODS["rded"].settings(JOB, "hash")
    assert (settings["crops"], settings["pool"], tuple(settings["crop_scale"])) == (5, 300, (0.08, 1.0))
