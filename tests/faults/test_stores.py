"""Tests of real runs on a store whose calls fail: at random, or all of them."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.faults.runs import JOB, assert_equal, overrides, read_tables, steps, write_scale
from tests.store import flaky
from vlcp_ray.config import load_job
from vlcp_ray.pipeline import run
from vlcp_ray.scale import load_scale
from vlcp_ray.store.io import StoreError

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("default")]


def test_run_on_a_flaky_store_equals_the_undisturbed_run(
    ray_session: None, folder: Path, undisturbed: dict[str, pa.Table]
) -> None:
    root = folder / "flaky"
    scale = load_scale(str(write_scale(folder)))
    done = list(run(load_job(JOB, overrides(root)), flaky.store(root, 0.05), "evaluate", scale))
    assert {step.stage for step in done} == {step.stage for step in steps(root)} - {"report"}
    again = list(run(load_job(JOB, overrides(root)), flaky.store(root, 0), "report", scale))
    assert len(again) == len(steps(root))
    assert_equal(root, undisturbed)


def test_run_on_a_full_store_raises_store_error_and_completes_nothing(
    ray_session: None, folder: Path, undisturbed: dict[str, pa.Table]
) -> None:
    root, scale = folder / "full", load_scale(str(write_scale(folder)))
    job = load_job(JOB, overrides(root))
    with pytest.raises(StoreError, match=r"cannot write .*: failed .* times in .* Free space"):
        list(run(job, flaky.store(root, 1), "pair", scale))
    assert not list(root.rglob("manifest.json"))
    list(run(job, flaky.store(root, 0), "pair", scale))
    assert read_tables(root, "pair")["pair pairs"].equals(undisturbed["pair pairs"])
