"""Tests of the records that describe a stage."""

import inspect
from pkgutil import resolve_name

import pytest

from vlcp_ray.scale import Scale, pools
from vlcp_ray.stages import STAGES, works
from vlcp_ray.stages.stage import BatchDone, Load, Stage, Work

WORK = Work("work", "encode", "tests.stages.test_stage:one_image")


def one_image(job: object, pool: object) -> object:
    return lambda: BatchDone(1, 2.0)


def test_work_make_batch_calls_function_by_name() -> None:
    batch = WORK.make_batch(None, None)
    assert batch() == BatchDone(1, 2.0, tokens=0.0)


def test_load_pool_name_is_that_of_work_unless_given() -> None:
    assert Load(WORK, 1, 1.0, units=1).pool_name == "encode"
    assert Load(WORK, 1, 1.0, units=1, pool="finetune").pool_name == "finetune"


def test_stage_without_functions_has_no_loads_and_no_checks() -> None:
    stage = Stage("stage", version=1, summary="")
    assert list(stage.loads(None, [])) == []
    assert stage.disk(None, []) == 0.0
    assert list(stage.memory(None, None, None)) == []
    stage.check(None)
    stage.check_scale(None, None)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_stage_in_list_has_run_function_and_pools_of_scale(stage: Stage) -> None:
    run = resolve_name(f"vlcp_ray.stages.{stage.name}.run:run")
    assert list(inspect.signature(run).parameters) == ["context", "steps"]
    assert set(stage.pools) <= set(pools(Scale()))
    assert {work.pool for work in stage.works} <= set(pools(Scale()))


@pytest.mark.parametrize("work", works().values(), ids=works())
def test_work_in_list_has_batch_function(work: Work) -> None:
    assert len(inspect.signature(resolve_name(work.batch)).parameters) == 2
