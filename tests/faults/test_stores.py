"""Runs the chain on a store that refuses at random: it ends with the tables of a calm run, or with one sentence."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests import flaky
from tests.faults.runs import JOB, assert_equal, overrides, steps, tables, write_scale
from vlcp_ray.config import load_job
from vlcp_ray.pipeline import run
from vlcp_ray.scale import load_scale
from vlcp_ray.store import StoreError

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("default")]


def test_a_store_that_is_full_for_moments_gets_everything(
    ray_session: None, folder: Path, calm: dict[str, pa.Table]
) -> None:
    root = folder / "flaky"
    scale = load_scale(str(write_scale(folder)))
    made = list(run(load_job(JOB, overrides(root)), flaky.store(root, 0.05), "evaluate", scale))
    assert {step.stage for step in made} == {step.stage for step in steps(root)} - {"report"}
    again = list(run(load_job(JOB, overrides(root)), flaky.store(root, 0), "report", scale))
    assert len(again) == len(steps(root))
    assert_equal(root, calm)


def test_a_store_that_stays_full_ends_in_one_sentence_and_seals_nothing(
    ray_session: None, folder: Path, calm: dict[str, pa.Table]
) -> None:
    root, scale = folder / "full", load_scale(str(write_scale(folder)))
    job = load_job(JOB, overrides(root))
    with pytest.raises(StoreError, match=r"the store refuses to write .* Free space"):
        list(run(job, flaky.store(root, 1), "pair", scale))
    assert not list(root.rglob("manifest.json"))
    list(run(job, flaky.store(root, 0), "pair", scale))
    assert tables(root, "pair")["pair pairs"].equals(calm["pair pairs"])
