"""Tests of the device-seconds of distilled sets, on manifests of a small graph."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlcp_ray.scale import FinetunePool, Pool, Scale
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.report.device_seconds import device_seconds, recorded_pools, with_device_seconds
from vlcp_ray.store.artifact import Manifest, Step

IMAGES = Step("ingest", 1, {})
PAIRS = Step("pair", 1, {}, {}, {"images": IMAGES})
MODEL = Step("finetune", 1, {}, {"seed": 0}, {"pairs": PAIRS})
PROTOTYPES = Step("prototype", 1, {}, {"seed": 0, "ipc": 5}, {"pairs": PAIRS})
TEACHER = Step("teach", 1, {}, {}, {"images": IMAGES})


def key(method: str, ipc: int = 5, seed: int = 0) -> dict[str, Any]:
    return {"method": method, "ipc": ipc, "seed": seed}


OURS = Step("generate", 1, {}, key("vlcp"), {"prototypes": PROTOTYPES, "model": MODEL})
RDED = Step("select", 1, {}, key("rded"), {"images": IMAGES, "teacher": TEACHER})
SCORES = Step("evaluate", 1, {}, OURS.key, {"set": OURS, "images": IMAGES, "teacher": TEACHER})
STEPS = [IMAGES, PAIRS, MODEL, PROTOTYPES, TEACHER, OURS, RDED, SCORES]
SCALE = Scale(
    ingest=Pool(num_workers=100),
    caption=Pool(num_workers=3, num_cpus=2, num_gpus=1),
    encode=Pool(num_workers=2, num_gpus=0.25),
    finetune=FinetunePool(num_workers=4, num_gpus=1, gradient_checkpointing=False),
    prototype=Pool(num_workers=6, num_cpus=2),
    generate=Pool(num_workers=4, num_gpus=1),
    evaluate=Pool(num_workers=8, num_cpus=3, num_gpus=0.5),
)


def manifest(seconds: float, scale: Scale = SCALE) -> Manifest:
    return {"seconds": seconds, "scale": scale.model_dump(exclude_none=True)}


def manifests(*seconds: float) -> dict[str, Manifest | None]:
    """Of all steps, with these seconds."""
    return {step.fingerprint: manifest(one) for step, one in zip(STEPS, seconds, strict=True)}


def test_device_seconds_are_seconds_by_workers_by_devices() -> None:
    known = manifests(1000.0, 10.0, 100.0, 7.0, 20.0, 5.0, 2.0, 1000.0)
    on_gpus = 10 * (3 * 1 + 2 * 0.25) + 100 * 4 + 5 * 4  # PAIRS, needed twice, counts once
    assert device_seconds(OURS, known) == {"gpu_seconds": on_gpus, "cpu_seconds": 7 * 6 * 2}
    assert device_seconds(RDED, known) == {"gpu_seconds": 20 * 8 * 0.5 + 2 * 4, "cpu_seconds": 0.0}


def test_device_seconds_without_gpus_are_of_cpus() -> None:
    pool = Pool(num_workers=2, num_cpus=3)
    scale = Scale(**{name: pool for name in SCALE.model_dump() if isinstance(getattr(SCALE, name), Pool)})
    known = {step.fingerprint: manifest(1.0, scale) for step in STEPS}
    # Two pools of PAIRS, and one each of the model, the prototypes and the set.
    assert device_seconds(OURS, known) == {"gpu_seconds": 0.0, "cpu_seconds": 5 * 6}


@given(st.lists(st.floats(0, 1e6), min_size=len(STEPS), max_size=len(STEPS)), st.sampled_from([OURS, RDED]))
def test_device_seconds_add_up_what_a_set_needs_and_nothing_else(seconds: list[float], made: Step) -> None:
    total = device_seconds(made, manifests(*seconds))
    needed = [PAIRS, MODEL, PROTOTYPES, OURS] if made is OURS else [TEACHER, RDED]
    alone = [
        device_seconds(
            made, manifests(*(one if step == part else 0.0 for step, one in zip(STEPS, seconds, strict=True)))
        )
        for part in STEPS
    ]
    for name in total:
        assert total[name] == pytest.approx(sum(part[name] or 0.0 for part in alone))
        assert all(not part[name] for step, part in zip(STEPS, alone, strict=True) if step not in needed)


def test_device_seconds_of_pools_that_worked_one_after_the_other_are_those_of_each() -> None:
    dit = Step("finetune", 1, {}, {"method": "minimax", "seed": 0}, {"images": IMAGES})
    made = Step("select", 1, {}, key("minimax"), {"images": IMAGES, "model": dit})
    known = {dit.fingerprint: manifest(50.0) | {"seconds_by_pool": {"encode": 20.0, "finetune": 30.0}}}
    known[made.fingerprint] = manifest(2.0)
    on_gpus = 20 * 2 * 0.25 + 30 * 4 + 2 * 4
    assert device_seconds(made, known) == {"gpu_seconds": on_gpus, "cpu_seconds": 0.0}
    assert recorded_pools(dit, known[dit.fingerprint]) == [SCALE.encode, Pool(num_workers=4, num_gpus=1)]


def test_device_seconds_of_an_incomplete_artifact_are_unknown() -> None:
    unknown = {"gpu_seconds": None, "cpu_seconds": None}
    for step in (PAIRS, MODEL, PROTOTYPES, OURS):
        known = manifests(*[1.0] * len(STEPS))
        assert device_seconds(OURS, known | {step.fingerprint: None}) == unknown
        del known[step.fingerprint]
        assert device_seconds(OURS, known) == unknown
        assert device_seconds(RDED, known) != unknown


def test_device_seconds_of_a_pool_that_did_not_work_are_none() -> None:
    known = manifests(*[1.0] * len(STEPS))
    saved = SCALE.model_copy(update={"caption": None})  # captions from a table
    known[PAIRS.fingerprint] = manifest(1.0, saved)
    before = device_seconds(OURS, manifests(*[1.0] * len(STEPS)))["gpu_seconds"] or 0.0
    assert device_seconds(OURS, known)["gpu_seconds"] == before - 3


def test_recorded_pools_are_plain_pools_of_the_stage() -> None:
    assert recorded_pools(PAIRS, manifest(1.0)) == [SCALE.caption, SCALE.encode]
    (ranks,) = recorded_pools(MODEL, manifest(1.0))
    assert type(ranks) is Pool
    assert ranks.model_dump() == SCALE.finetune.model_dump(include=set(Pool.model_fields))
    assert [len(recorded_pools(Step(name, 1, {}), manifest(1.0))) for name in STAGES] == [
        len(stage.pools) for stage in STAGES.values()
    ]


def test_with_device_seconds_adds_them_to_the_measures_of_each_set() -> None:
    known = manifests(1000.0, 10.0, 100.0, 7.0, 20.0, 5.0, 2.0, 1000.0)
    measures = [key("rded") | {"coverage": 0.25}, key("vlcp") | {"coverage": 0.5}]
    assert with_device_seconds(measures, STEPS, known) == [
        key("rded") | {"coverage": 0.25} | device_seconds(RDED, known),
        key("vlcp") | {"coverage": 0.5} | device_seconds(OURS, known),
    ]
    assert with_device_seconds([], STEPS, {}) == []
