"""Tests of the context of a run: progress, manifests, and completing artifacts."""

from pathlib import Path

import pytest
import ray

from vlcp_ray.config import Job
from vlcp_ray.engine.context import Context, identity, versions
from vlcp_ray.scale import Scale
from vlcp_ray.settings import build
from vlcp_ray.store.artifact import Step, Store

IMAGES = Step("ingest", 1, {"source": "x"})
PAIRS = Step("pair", 2, {"resolution": 32}, {"seed": 0}, {"images": IMAGES})


def context(root: Path) -> Context:
    return Context(build(Job, {"name": "x"}, "x"), Scale(), Store.at(str(root)))


def test_progress_of_several_steps_is_titled_with_their_number(tmp_path: Path) -> None:
    one = context(tmp_path).progress([PAIRS], 10, "rows", done=4)
    assert (one.title, one.makes, one.count) == ("pair seed 0", (PAIRS.fingerprint,), 4)
    several = context(tmp_path).progress([PAIRS, IMAGES], None, "rows")
    assert (several.title, several.makes) == ("pair (2 sets)", (PAIRS.fingerprint, IMAGES.fingerprint))


def test_complete_writes_a_manifest_that_inputs_are_read_from(tmp_path: Path) -> None:
    run = context(tmp_path)
    run.complete(IMAGES, rows_in=10, rows=8, rejected=2, seconds=1.5, splits={"train": 8})
    manifest = run.manifest(IMAGES)
    assert manifest | identity(IMAGES) == manifest
    assert (manifest["rows_in"], manifest["rows"], manifest["rejected"]) == (10, 8, 2)
    assert (manifest["seconds"], manifest["splits"]) == (1.5, {"train": 8})
    assert manifest["peak_memory"] > 0
    assert manifest["scale"]["caption"]["num_workers"] == 1
    assert run.rows(PAIRS, "images") == 8
    assert run.input(PAIRS, "images") == run.artifact(IMAGES)


def test_complete_with_lost_rows_raises(tmp_path: Path) -> None:
    run = context(tmp_path)
    with pytest.raises(RuntimeError, match="pair seed 0: 10 rows in, but 7 out and 2 rejected"):
        run.complete(PAIRS, rows_in=10, rows=7, rejected=2, seconds=1.0)
    assert run.artifact(PAIRS).manifest() is None


def test_manifest_of_an_incomplete_artifact_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pair seed 0 is not complete"):
        context(tmp_path).manifest(PAIRS)


def test_identity_has_everything_of_the_fingerprint() -> None:
    assert identity(PAIRS) == {
        "stage": "pair",
        "title": "pair seed 0",
        "version": 2,
        "fingerprint": PAIRS.fingerprint,
        "key": {"seed": 0},
        "settings": {"resolution": 32},
        "inputs": {"images": f"ingest-{IMAGES.fingerprint}"},
    }


def test_versions_lists_installed_packages() -> None:
    assert versions()["ray"] == ray.__version__
    assert "torch" in versions()
