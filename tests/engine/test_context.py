"""Tests of the context of a run: progress, manifests, and completing artifacts."""

from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from vlcp_ray.config import Job
from vlcp_ray.engine.context import Context, identity, share_seconds, versions
from vlcp_ray.scale import Pool, Scale
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


def test_complete_records_the_workers_that_made_the_artifact(tmp_path: Path) -> None:
    run = context(tmp_path)
    run.complete(PAIRS, rows_in=1, rows=1, seconds=1.0, pools={"caption": None, "encode": Pool(num_workers=7)})
    scale = run.manifest(PAIRS)["scale"]
    assert "caption" not in scale
    assert scale["encode"]["num_workers"] == 7
    assert scale["generate"] == Pool().model_dump(exclude_none=True)
    assert scale.keys() == Scale().model_dump(exclude_none=True).keys() - {"caption"}
    assert run.scale == Scale()


AMOUNTS = st.floats(0, 1e6, allow_subnormal=False)


@given(AMOUNTS, st.dictionaries(st.text(), AMOUNTS, min_size=1))
def test_share_seconds_are_proportional_and_add_up(seconds: float, work: dict[str, float]) -> None:
    shares = share_seconds(seconds, work)
    assert list(shares) == list(work)
    assert sum(shares.values()) == pytest.approx(seconds)
    for name, amount in work.items():
        if any(work.values()):
            assert shares[name] * sum(work.values()) == pytest.approx(seconds * amount)
        else:
            assert shares[name] == pytest.approx(seconds / len(work))


def test_share_seconds_of_whole_numbers_are_exact() -> None:
    assert share_seconds(90.0, {"ten": 10, "fifty": 50, "none": 0}) == {"ten": 15.0, "fifty": 75.0, "none": 0.0}
    assert share_seconds(90.0, {"a": 0, "b": 0.0}) == {"a": 45.0, "b": 45.0}
    assert share_seconds(90.0, {"a": 1e-9}) == {"a": 90.0}


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
